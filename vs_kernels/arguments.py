"""Types of arguments that several command lines take, for argparse."""

import argparse

from vs_kernels.plan import check_budget


def budget(text: str) -> float:
    """A retention budget, or the error that argparse shows."""
    try:
        share = float(text)
        check_budget(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number in (0, 1]") from None
    return share
