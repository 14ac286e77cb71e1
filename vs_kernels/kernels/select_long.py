"""Top-K and gather of select_tokens where a pool is long: two launches, after scores that were counted on the way.

The first launch knows the first two bytes of every k-th key from the counts. Its programs put the few keys that share
them on a list, and the last one of a pool to finish finds the k-th among those, alone: programs that waited for each
other could wait for one that has not started. Programs of the second launch own a granule of 64 scores each. The counts
of the keys before it tell them the slots of its kept rows.

A short pool between long ones has no counts: all of its keys are on the list.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels import select_digits
from vs_kernels.kernels.launch import launch, row_major
from vs_kernels.kernels.pools import find_tile, first_tile, num_tiles
from vs_kernels.kernels.scores import MIN_KEY, score_key
from vs_kernels.kernels.select_digits import BINS, STATE, counted_digits, counts_of_pool
from vs_kernels.kernels.tiles import tile_of
from vs_kernels.kernels.topk_digits import find_digit
from vs_kernels.kernels.topk_results import kept_slots

TILE = 4096  # scores of a program of the first launch
BLOCK = 4096  # keys that its last program looks at in one go
GRANULE = 64  # scores of a program of the second launch
WARPS = 16
# A granule's keys above the k-th, and those equal to it, are one integer: one atomic and one scan for both.
EQUAL = tl.constexpr(2**32)


@triton.jit
def _finish(
    state, list_keys, list_rows, choice, before, n, rank, prefix, first_step, BLOCK: tl.constexpr, GRANULE: tl.constexpr
):  # fmt: skip
    """Find the k-th key of a pool among those on its list, and turn its granules' counts into counts before them."""
    bins = tl.arange(0, BINS)
    found = tl.load(state)
    key = tl.full([], 0, tl.int32) + (prefix << 16)
    known = tl.full([], 0, tl.int32)  # bits that the list does not share and that are found
    for step in range(first_step, 4):
        shift = 24 - 8 * step
        counts = tl.zeros([BINS], tl.int32)
        for start in range(0, found, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            inside = entry < found
            other = tl.load(list_keys + entry, mask=inside, other=0) ^ MIN_KEY
            counts += tl.histogram((other >> shift) & 255, BINS, mask=inside & (((other ^ key) & known) == 0))
        digit, rank = find_digit(counts, bins, rank)
        key |= digit << shift
        known |= 255 << shift
    kth = key ^ MIN_KEY
    tl.store(choice, kth)
    tl.store(choice + 1, rank)
    for start in range(0, found, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < found
        other = tl.load(list_keys + entry, mask=inside, other=MIN_KEY)
        row = tl.load(list_rows + entry, mask=inside, other=0)
        one = tl.where(other > kth, tl.full([BLOCK], 1, tl.int64), tl.full([BLOCK], EQUAL, tl.int64))
        tl.atomic_add(before + row // GRANULE, one, mask=inside & (other >= kth), sem="relaxed")
    tl.debug_barrier()
    granules = (n + GRANULE - 1) // GRANULE
    earlier = tl.full([], 0, tl.int64)
    for start in range(0, granules, BLOCK):
        granule = start + tl.arange(0, BLOCK)
        own = tl.load(before + granule, mask=granule < granules, other=0)
        tl.store(before + granule, earlier + tl.cumsum(own, axis=0) - own, mask=granule < granules)
        earlier += tl.sum(own, axis=0)


@triton.jit(do_not_specialize=["num_pools"])
def _select_kernel(
    scores,  # float32 [T]
    cu_lengths,  # int64 [S + 1]
    cu_ks,  # int64 [S + 1]
    counts,  # int32, of the long pools' digits
    state,  # int32 [S, 2], zeros: keys on the list of a pool, and its tiles that are done
    list_keys,  # int32 [T]: those of a pool from its first row on
    list_rows,  # int32 [T]: their rows, counted from the first of the pool
    choices,  # int32 [S, 2], out: the k-th key, and how many keys equal to it are kept
    before,  # int64 [granules], out: keys of the pool before a granule, above the k-th + 2^32 times equal to it
    num_pools,
    LONG: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    GRANULE: tl.constexpr,
):
    pool, begin, end = find_tile(cu_lengths, num_pools, tl.program_id(0), TILE)
    if begin < end:
        start = tl.load(cu_lengths + pool)
        n = (tl.load(cu_lengths + pool + 1) - start).to(tl.int32)
        rank = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
        row = (begin - start).to(tl.int32) + tl.arange(0, TILE)
        inside = row < n
        key = score_key(tl.load(scores + start + row, mask=inside, other=0.0))
        first_step = tl.full([], 0, tl.int32)
        prefix = tl.full([], 0, tl.int32)
        above = tl.zeros([TILE], tl.int32)
        listed = inside.to(tl.int32)
        if n > LONG:
            first_step += 2
            prefix, rank = counted_digits(counts_of_pool(counts, start, LONG), rank)
            high = ((key ^ MIN_KEY) >> 16) & 65535
            above = (inside & (high > prefix)).to(tl.int32)
            listed = (inside & (high == prefix)).to(tl.int32)
        own_before = before + first_tile(start, pool, GRANULE)
        granule = (begin - start).to(tl.int32) // GRANULE + tl.arange(0, TILE // GRANULE)
        sums = tl.sum(tl.reshape(above, [TILE // GRANULE, GRANULE]), axis=1)
        tl.store(own_before + granule, sums.to(tl.int64), mask=granule * GRANULE < n)
        own_state = state + STATE * pool
        entry = tl.atomic_add(own_state, tl.sum(listed, axis=0), sem="relaxed") + tl.cumsum(listed, axis=0) - listed
        tl.store(list_keys + start + entry, key, mask=listed > 0)
        tl.store(list_rows + start + entry, row, mask=listed > 0)
        # All threads of the program are behind their stores before one of them says so.
        tl.debug_barrier()
        done = tl.atomic_add(own_state + 1, 1, sem="acq_rel")
        if done == (n + TILE - 1) // TILE - 1:
            _finish(
                own_state, list_keys + start, list_rows + start, choices + 2 * pool, own_before, n, rank, prefix,
                first_step, BLOCK, GRANULE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_pools"])
def _gather_kept_kernel(
    tokens,  # [T, D]
    scores,  # float32 [T]
    cu_lengths,  # int64 [S + 1]
    cu_ks,  # int64 [S + 1]
    choices,  # int32 [S, 2]
    before,  # int64 [granules]
    indices,  # int64 [K], out
    kept_tokens,  # [K, D], out
    stride,
    num_pools,
    GRANULE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    pool, begin, end = find_tile(cu_lengths, num_pools, tl.program_id(0), GRANULE)
    if begin < end:
        row = tl.arange(0, GRANULE)
        inside = begin + row < end
        key = score_key(tl.load(scores + begin + row, mask=inside, other=0.0))
        earlier = tl.load(before + tl.program_id(0))
        above, equal = (earlier & (EQUAL - 1)).to(tl.int32), (earlier >> 32).to(tl.int32)
        kth, ties = tl.load(choices + 2 * pool), tl.load(choices + 2 * pool + 1)
        slots = tl.load(cu_ks + pool)
        first = above + tl.minimum(equal, ties)
        kept, slot, above, equal = kept_slots(key, inside, kth, ties, above, equal)
        end_slot = above + tl.minimum(equal, ties)
        if tl.program_id(1) == 0:
            tl.store(indices + slots + slot, begin + row, mask=kept)
        columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        for start in range(first, end_slot, BLOCK_ROWS):
            wanted = start + tl.arange(0, BLOCK_ROWS)
            mask = (wanted < end_slot)[:, None] & (columns < WIDTH)[None, :]
            here = kept[None, :] & (slot[None, :] == wanted[:, None])
            rows = begin + tl.sum(tl.where(here, row[None, :], 0), axis=1)
            x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask)
            tl.store(kept_tokens + (slots + wanted)[:, None] * WIDTH + columns[None, :], x, mask=mask)


def select_long(
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    counts: Tensor,  # int32, of the long pools' digits, and the state behind them
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    total_kept: int,
) -> tuple[Tensor, Tensor]:
    """Kept rows [K, D] and their indices [K]."""
    (total, width), num_pools, tokens = tokens.shape, cu_lengths.shape[0] - 1, row_major(tokens)
    state = counts[select_digits.num_counts(total) :]
    list_keys, list_rows = (scores.new_empty(total, dtype=torch.int32) for _ in range(2))
    choices = scores.new_empty(num_pools, 2, dtype=torch.int32)
    granules = num_tiles(total, num_pools, GRANULE)
    before = scores.new_empty(granules, dtype=torch.int64)
    indices = scores.new_empty(total_kept, dtype=torch.int64)
    kept_tokens = tokens.new_empty(total_kept, width)
    launch(
        _select_kernel, (num_tiles(total, num_pools, TILE),), scores, cu_lengths, cu_ks, counts, state, list_keys,
        list_rows, choices, before, num_pools, LONG=select_digits.LONG, TILE=TILE, BLOCK=BLOCK, GRANULE=GRANULE,
        num_warps=WARPS,
    )  # fmt: skip
    tile = tile_of("rows", width, tokens.device)
    launch(
        _gather_kept_kernel, (granules, triton.cdiv(width, tile.columns)), tokens, scores, cu_lengths, cu_ks, choices,
        before, indices, kept_tokens, tokens.stride(0), num_pools, GRANULE=GRANULE, WIDTH=width, BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip
    return kept_tokens, indices
