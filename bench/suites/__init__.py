"""One module per suite: its docstring's first line is its description, ``main(argv)`` returns the exit code."""
