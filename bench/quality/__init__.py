"""The quality benchmark: tasks from pip packages, small backbones, selectors trained and compared on them."""
