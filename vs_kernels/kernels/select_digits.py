"""Counts of the first bytes of the keys of long pools, made together with the scores.

A pool of more than ``LONG`` scores has 256 counts of the first byte and then 65,536 of the first two. Two bytes in one
step leave few keys to look at again, one in a thousand of normal scores; the counts of one byte tell which 256 of the
others to read. Pools are told apart by their first row: no two long ones begin in the same ``LONG`` rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.scores import MIN_KEY
from vs_kernels.kernels.topk import MOST_IN_REGISTERS
from vs_kernels.kernels.topk_digits import find_digit

LONG = MOST_IN_REGISTERS  # scores; longer pools are counted
BINS = tl.constexpr(256)
COUNTS = tl.constexpr(256 + 65536)  # of one pool
STATE = tl.constexpr(2)  # integers that the selection of any pool needs beside them


def new_counts(scores: Tensor, num_pools: int) -> Tensor:
    """int32: counts for all long pools there can be among the scores, and the state of every pool behind them.

    Not zero yet: the scorer does that on the way.
    """
    return scores.new_empty(num_counts(scores.shape[0]) + STATE.value * num_pools, dtype=torch.int32)


def num_counts(total_rows: int) -> int:
    return (total_rows // LONG + 1) * COUNTS.value


@triton.jit
def counts_of_pool(counts, begin, LONG: tl.constexpr):
    """The counts of a long pool that begins at a row, which is an int64."""
    return counts + begin // LONG * COUNTS


@triton.jit
def count_digits(counts, key, inside):
    """Add keys to the counts of their pool, in integers, so that the order does not matter.

    Equal digits are counted in one atomic: most scores of a pool share their first byte.
    """
    order = tl.arange(0, key.shape[0])
    for step in tl.static_range(2):
        digit = ((key ^ MIN_KEY) >> (24 - 8 * step)) & (255 if step == 0 else 65535)
        equal = (digit[:, None] == digit[None, :]) & inside[None, :]
        is_first = tl.sum((equal & (order[None, :] < order[:, None])).to(tl.int32), axis=1) == 0
        place = counts + (0 if step == 0 else BINS) + digit
        tl.atomic_add(place, tl.sum(equal.to(tl.int32), axis=1), mask=inside & is_first, sem="relaxed")


@triton.jit
def counted_digits(counts, rank):
    """First two bytes of the rank-th largest key of a pool, and its rank among the keys that begin with them."""
    bins = tl.arange(0, BINS)
    first, rank = find_digit(tl.load(counts + bins), bins, rank)
    second, rank = find_digit(tl.load(counts + BINS + first * BINS + bins), bins, rank)
    return first << 8 | second, rank
