"""The C allocator in one state for every comparison, so that what ran before does not decide what is timed now."""

import ctypes
import sys

from torch import Tensor

# glibc's numbers of its settings.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Where large blocks are freed, glibc comes to such limits by itself: results of a few MB are in the same memory again
# and again, those of many MB in fresh one.
TIMED_FRESH_BYTES = 24 << 20
KEPT_BYTES = 64 << 20
# Inputs and truths would leave gaps in the heap, into which what is timed fits or not.
PREPARED_FRESH_BYTES = 1 << 20


def fresh_bytes(*results: Tensor) -> int:
    """Of what a timed call returns, the bytes in blocks that are fresh from the system."""
    return sum(result.nbytes for result in results if result.nbytes >= TIMED_FRESH_BYTES)


def take_fresh_from(size: int) -> None:
    """Have glibc take blocks of ``size`` bytes and more fresh from the system, and smaller ones from its heap, of whose
    free end it keeps 64 MiB. Other C libraries stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, size)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
