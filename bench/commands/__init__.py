"""What ``python -m bench`` does besides running one suite."""
