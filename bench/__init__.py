"""Benchmarks of vs_kernels: ``python -m bench`` lists the suites."""
