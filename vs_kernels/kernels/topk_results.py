"""What a pool's Top-K writes, given its k-th key and soft shift, in index order."""

import triton
import triton.language as tl

from vs_kernels.kernels.scores import finite_score, is_finite, sigmoid, softplus
from vs_kernels.kernels.topk_tiles import GROUP, sum_of_tile


@triton.jit
def _above_and_equal(key, inside, kth, BITS: tl.constexpr):
    """Two counts in one: 1 above the k-th key, 1 << BITS where equal to it."""
    return ((key > kth) & inside).to(tl.int32) | ((key == kth) & inside).to(tl.int32) << BITS


@triton.jit
def _choose(key, inside, kth, ties, above_before, ties_before):
    """Whether each key is kept, above the k-th or among the first ``ties`` equal to it, and its slot.

    Args:
        above_before, ties_before: keys of earlier rows above the k-th and equal to it.
    """
    kept = inside & ((key > kth) | ((key == kth) & (ties_before < ties)))
    return kept, above_before + tl.minimum(ties_before, ties)


@triton.jit
def kept_slots(key, inside, kth, ties, above_before, ties_before):
    """Whether each key of a block is kept, and its slot.

    Args:
        above_before, ties_before: keys of earlier blocks above the k-th and equal to it.

    Returns:
        kept, slots, and the two counts for the next block.
    """
    # Two counts of at most 16,384 in one scan.
    both = _above_and_equal(key, inside, kth, 16)
    before = tl.cumsum(both, axis=0) - both
    kept, slot = _choose(key, inside, kth, ties, above_before + (before & 0xFFFF), ties_before + (before >> 16))
    total = tl.sum(both, axis=0)
    return kept, slot, above_before + (total & 0xFFFF), ties_before + (total >> 16)


@triton.jit
def logits(key, pivot, shift, inverse_temperature):
    """Where k is 0 or n the shift is infinite, and so is every logit."""
    infinite = tl.abs(shift) == float("inf")
    return tl.where(infinite, shift, (finite_score(key) - pivot) * inverse_temperature + shift)


@triton.jit
def cross_entropy(x, kept):
    """softplus(x) - m x, and p - m with the digits of p or of 1 - p."""
    value, small, exp = sigmoid(x)
    return softplus(tl.where(kept, -x, x), exp), tl.where(kept, tl.where(x < 0.0, small - 1.0, -small), value)


@triton.jit
def _widen(counts):
    """Two counts of 8 bits as two of 16."""
    counts = counts.to(tl.int32)
    return (counts & 0xFF) | ((counts & 0xFF00) << 8)


@triton.jit
def _counts_before_warps(keys, rows, n, kth):
    """Keys of the rows before those of each warp that are above the k-th, and in the upper 16 bits equal to it."""
    counts = tl.zeros(rows.shape, tl.int32)
    for tile in tl.static_range(len(keys)):
        counts += _above_and_equal(keys[tile], rows < n - tile * rows.shape[1], kth, 16)
    counts = tl.sum(counts, axis=1)
    return (tl.cumsum(counts, axis=0) - counts)[:, None]


@triton.jit
def write_results(
    keys,  # tiles of a pool, see topk_tiles
    rows,  # of the first tile
    n,
    k,
    kth,
    ties,
    pivot,
    shift,
    inverse_temperature,
    share,
    first_row,
    first_slot,
    indices,  # int64 [K]; None: not wanted, as for all that follow
    mask,  # bool [T]
    probs,  # float32 [T]
    loss,  # float32 []: share times the sum of softplus(x) - m x over the pool, with grad_scores
    grad_scores,  # float32 [T], its gradient; both are zero where k is 0 or n
):
    moving = (k > 0) & (k < n)
    LANES: tl.constexpr = rows.shape[1]
    before = _counts_before_warps(keys, rows, n, kth)
    terms = tl.zeros(rows.shape, tl.float32)
    for start in range(0, len(keys), GROUP):
        group = keys[:GROUP]
        keys = keys[GROUP:] + group
        # A warp has at most 64 lanes: the counts of four tiles fit one scan.
        found = tl.zeros(rows.shape, tl.int64)
        for tile in tl.static_range(GROUP):
            both = _above_and_equal(group[tile], rows < n - (start + tile) * LANES, kth, 8)
            found |= both.to(tl.int64) << (16 * tile)
        found_before = tl.cumsum(found, axis=1) - found
        found = tl.sum(found, axis=1, keep_dims=True)
        for tile in tl.static_range(GROUP):
            key = group[tile]
            ahead = (start + tile) * LANES
            inside = rows < n - ahead
            both = before + _widen(found_before >> (16 * tile))
            before += _widen(found >> (16 * tile))
            kept, slot = _choose(key, inside, kth, ties, both & 0xFFFF, both >> 16)
            if indices is not None:
                tl.store(indices + first_slot + slot, first_row + rows + ahead, mask=kept)
            if mask is not None:
                tl.store((mask + first_row + rows) + ahead, kept, mask=inside)
            if probs is not None:
                value, _, _ = sigmoid(logits(key, pivot, shift, inverse_temperature))
                tl.store((probs + first_row + rows) + ahead, value, mask=inside)
            if loss is not None:
                term, excess = cross_entropy(logits(key, pivot, shift, inverse_temperature), kept)
                terms += tl.where(inside & moving, term, 0.0)
                # sum(p) = k makes the sum of p - m over the pool 0, and with it what the shift adds to the gradient.
                grad = tl.where(is_finite(key) & moving, share * inverse_temperature * excess, 0.0)
                tl.store((grad_scores + first_row + rows) + ahead, grad, mask=inside)
    if loss is not None:
        tl.store(loss, sum_of_tile(terms) * share)
