"""Hard Top-K of large pools by many programs, in four launches.

Three launches find the k-th key, 11, 11 and 10 bits each: every program counts the digits of its tile among the keys
that may still be the k-th, and the next launch adds up the counts of a pool in every one of its programs. The counts
also say how many rows each tile keeps, so that the fourth launch writes without a scan across programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.launch import launch
from vs_kernels.kernels.pools import find_tile, first_tile, num_tiles
from vs_kernels.kernels.scores import score_key
from vs_kernels.kernels.topk_digits import find_digit, unsigned
from vs_kernels.kernels.topk_results import kept_slots

TILE_ROWS = 16384
BLOCK = 2048
BINS = tl.constexpr(2048)


@triton.jit
def _shift(STEP: tl.constexpr):
    """Position of a step's digit in the key: 21, 10, 0."""
    return 21 - 11 * STEP + STEP // 2


@triton.jit
def _find_digit(counts, prefixes, ranks, cu_ks, pool, num_pools, first, tiles, STEP: tl.constexpr):
    """Prefix of the k-th key up to the digit of a step, that digit, and its rank among the keys with this prefix."""
    bins = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int32)
    for tile in range(0, tiles):
        total += tl.load(counts + (first + tile) * BINS + bins)
    if STEP == 0:
        prefix = tl.full([], 0, tl.int64)
        rank = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
    else:
        prefix = tl.load(prefixes + (STEP - 1) * num_pools + pool)
        rank = tl.load(ranks + (STEP - 1) * num_pools + pool)
    digit, rank = find_digit(total, bins, rank)
    bits: tl.constexpr = 10 if STEP == 2 else 11
    return (prefix << bits) | digit, digit, rank


@triton.jit(do_not_specialize=["num_pools", "num_tiles"])
def _count_digits_kernel(
    scores,  # float32 [T]
    cu_lengths,  # int64 [S + 1]
    cu_ks,  # int64 [S + 1]
    counts,  # int32 [3, tiles, 2048]
    prefixes,  # int64 [2, S], of the k-th keys, up to the digit before this step's
    ranks,  # int32 [2, S], of the k-th key among the keys with this prefix
    above,  # int32 [tiles], keys of a tile above the prefix
    num_pools,
    num_tiles,
    STEP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    pool, begin, end = find_tile(cu_lengths, num_pools, tile, TILE_ROWS)
    bins = tl.arange(0, BINS)
    prefix = tl.full([], 0, tl.int64)
    if STEP > 0:
        start = tl.load(cu_lengths + pool)
        first = first_tile(start, pool, TILE_ROWS)
        tiles = ((tl.load(cu_lengths + pool + 1) - start + TILE_ROWS - 1) // TILE_ROWS).to(tl.int32)
        last = counts + (STEP - 1) * num_tiles.to(tl.int64) * BINS
        prefix, digit, rank = _find_digit(last, prefixes, ranks, cu_ks, pool, num_pools, first, tiles, STEP - 1)
        if tile == first:
            tl.store(prefixes + (STEP - 1) * num_pools + pool, prefix)
            tl.store(ranks + (STEP - 1) * num_pools + pool, rank)
        own = tl.load(last + tile.to(tl.int64) * BINS + bins)
        more = tl.sum(tl.where((bins > digit) & (begin < end), own, 0), axis=0)
        if STEP == 2:
            more += tl.load(above + tile)
        tl.store(above + tile, more)
    count = tl.zeros([BINS], tl.int32)
    shift: tl.constexpr = _shift(STEP)
    bits: tl.constexpr = 10 if STEP == 2 else 11
    for offset in range(0, (end - begin).to(tl.int32), BLOCK):
        rows = begin + offset + tl.arange(0, BLOCK)
        inside = rows < end
        high = unsigned(score_key(tl.load(scores + rows, mask=inside, other=0.0))) >> shift
        digits = (high & ((1 << bits) - 1)).to(tl.int32)
        count += tl.histogram(digits, BINS, mask=inside & ((high >> bits) == prefix))
    tl.store(counts + (STEP * num_tiles + tile).to(tl.int64) * BINS + bins, count)


@triton.jit(do_not_specialize=["num_pools", "num_tiles"])
def _write_kernel(
    scores, cu_lengths, cu_ks, counts, prefixes, ranks, above,
    indices,  # int64 [K]; None: not wanted
    mask,  # bool [T]; None: not wanted
    num_pools,
    num_tiles,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    pool, begin, end = find_tile(cu_lengths, num_pools, tile, TILE_ROWS)
    start = tl.load(cu_lengths + pool)
    first = first_tile(start, pool, TILE_ROWS)
    tiles = ((tl.load(cu_lengths + pool + 1) - start + TILE_ROWS - 1) // TILE_ROWS).to(tl.int32)
    last = counts + 2 * num_tiles.to(tl.int64) * BINS
    prefix, digit, ties = _find_digit(last, prefixes, ranks, cu_ks, pool, num_pools, first, tiles, 2)
    kth = (prefix - 2147483648).to(tl.int32)
    bins = tl.arange(0, BINS)
    above_before = tl.full([], 0, tl.int32)
    ties_before = tl.full([], 0, tl.int32)
    for other in range(0, (tile - first).to(tl.int32)):
        count = tl.load(last + (first + other) * BINS + bins)
        above_before += tl.load(above + first + other) + tl.sum(tl.where(bins > digit, count, 0), axis=0)
        ties_before += tl.sum(tl.where(bins == digit, count, 0), axis=0)
    slots = tl.load(cu_ks + pool)
    for offset in range(0, (end - begin).to(tl.int32), BLOCK):
        rows = begin + offset + tl.arange(0, BLOCK)
        inside = rows < end
        key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
        kept, slot, above_before, ties_before = kept_slots(key, inside, kth, ties, above_before, ties_before)
        if indices is not None:
            tl.store(indices + slots + slot, rows, mask=kept)
        if mask is not None:
            tl.store(mask + rows, kept, mask=inside)


def split_topk(
    scores: Tensor, cu_lengths: Tensor, cu_ks: Tensor, indices: Tensor | None = None, mask: Tensor | None = None
) -> None:
    """Write the kept rows, or the mask, of all pools."""
    num_pools = cu_lengths.shape[0] - 1
    tiles = num_tiles(scores.shape[0], num_pools, TILE_ROWS)
    counts = scores.new_empty(3, tiles, BINS.value, dtype=torch.int32)
    prefixes = scores.new_empty(2, num_pools, dtype=torch.int64)
    ranks = scores.new_empty(2, num_pools, dtype=torch.int32)
    above = scores.new_empty(tiles, dtype=torch.int32)
    options = {"TILE_ROWS": TILE_ROWS, "BLOCK": BLOCK, "num_warps": 16}
    state = (scores, cu_lengths, cu_ks, counts, prefixes, ranks, above)
    for step in range(3):
        launch(_count_digits_kernel, (tiles,), *state, num_pools, tiles, STEP=step, **options)
    launch(_write_kernel, (tiles,), *state, indices, mask, num_pools, tiles, **options)
