"""What a pool's Top-K writes, given its k-th key and soft shift: block after block, in index order.

The scores are read again for it, at most 64 KiB that the L1 cache still holds where one program had them in registers:
the slots of 16 scores a thread beside the scores themselves would not fit 64 registers.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.scores import finite_score, is_finite, score_key, sigmoid, softplus


@triton.jit
def load_keys(scores, start, n, BLOCK: tl.constexpr):
    """Keys of one block, which of them are inside of the pool, and their scores.

    What lies beyond the pool ranks last, behind its own NaN: it is never among the k first.
    """
    rows = start + tl.arange(0, BLOCK)
    inside = rows < n
    score = tl.load(scores + rows, mask=inside, other=float("nan"))
    return score_key(score), inside, score


@triton.jit
def kept_slots(key, inside, kth, ties, above_before, ties_before):
    """Whether each key of a block is kept, above the k-th or among the first ``ties`` equal to it, and its slot.

    Args:
        above_before, ties_before: keys of earlier blocks above the k-th and equal to it.

    Returns:
        kept, slots, and the two counts for the next block.
    """
    above = ((key > kth) & inside).to(tl.int32)
    equal = ((key == kth) & inside).to(tl.int32)
    # Two counts of at most 16,384 in one scan.
    both = above | (equal << 16)
    before = tl.cumsum(both, axis=0) - both
    tie = ties_before + (before >> 16)
    kept = (above | (equal & (tie < ties).to(tl.int32))) > 0
    slot = above_before + (before & 0xFFFF) + tl.minimum(tie, ties)
    total = tl.sum(both, axis=0)
    return kept, slot, above_before + (total & 0xFFFF), ties_before + (total >> 16)


@triton.jit
def write_choice(scores, n, kth, ties, first_row, indices, mask, BLOCK: tl.constexpr):
    """The kept rows, counted from ``first_row``, to ``indices``; whether each row is kept, to ``mask``; None: not."""
    above_before = tl.full([], 0, tl.int32)
    ties_before = tl.full([], 0, tl.int32)
    for start in range(0, n, BLOCK):
        key, inside, _ = load_keys(scores, start, n, BLOCK)
        kept, slot, above_before, ties_before = kept_slots(key, inside, kth, ties, above_before, ties_before)
        rows = start + tl.arange(0, BLOCK)
        if indices is not None:
            tl.store(indices + slot, first_row + rows, mask=kept)
        if mask is not None:
            tl.store(mask + rows, kept, mask=inside)


@triton.jit
def logits(key, pivot, shift, inverse_temperature):
    """Where k is 0 or n the shift is infinite, and so is every logit."""
    infinite = tl.abs(shift) == float("inf")
    return tl.where(infinite, shift, (finite_score(key) - pivot) * inverse_temperature + shift)


@triton.jit
def write_probs(scores, n, pivot, shift, inverse_temperature, probs, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        key, inside, _ = load_keys(scores, start, n, BLOCK)
        value, _, _ = sigmoid(logits(key, pivot, shift, inverse_temperature))
        tl.store(probs + start + tl.arange(0, BLOCK), value, mask=inside)


@triton.jit
def cross_entropy(x, kept):
    """softplus(x) - m x, and p - m with the digits of p or of 1 - p."""
    value, small, exp = sigmoid(x)
    return softplus(tl.where(kept, -x, x), exp), tl.where(kept, tl.where(x < 0.0, small - 1.0, -small), value)


@triton.jit
def write_loss(
    scores, n, k, kth, ties, pivot, shift, inverse_temperature, share, loss, grad_scores, BLOCK: tl.constexpr
):  # fmt: skip
    """``share`` times the sum of softplus(x) - m x over the pool, and its gradient; zero where k is 0 or n."""
    moving = (k > 0) & (k < n)
    total = tl.full([], 0.0, tl.float64)
    ties_before = tl.full([], 0, tl.int32)
    for start in range(0, n, BLOCK):
        key, inside, score = load_keys(scores, start, n, BLOCK)
        kept, _, _, ties_before = kept_slots(key, inside, kth, ties, 0, ties_before)
        term, excess = cross_entropy(logits(key, pivot, shift, inverse_temperature), kept)
        total += tl.sum(tl.where(inside & moving, term, 0.0), axis=0).to(tl.float64)
        # sum(p) = k makes the sum of p - m over the pool 0, and with it what the shift adds to the gradient.
        grad = tl.where(is_finite(score) & moving, share * inverse_temperature * excess, 0.0)
        tl.store(grad_scores + start + tl.arange(0, BLOCK), grad, mask=inside)
    tl.store(loss, (total * share).to(tl.float32))
