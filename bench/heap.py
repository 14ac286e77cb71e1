"""The C allocator in one state for a whole process, so that what ran before does not decide what is timed now."""

import ctypes
import sys

# glibc's names, and the limits that it comes to by itself where large blocks are freed; but weights of 25.7 MB, which
# a whole comparison keeps, would leave gaps in the heap, into which later blocks fit or not.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
FRESH_BYTES = 24 << 20
TRIM_BYTES = 64 << 20


def settle_heap() -> None:
    """Have glibc take blocks of 24 MiB and more fresh from the system and smaller ones from its heap, whose end it
    keeps; other C libraries stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, FRESH_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
