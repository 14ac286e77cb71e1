"""Hard and soft Top-K of pools beyond the registers: one program a pool, which reads its scores again for every pass.

Four passes find the k-th key, a byte each, by histograms; about four more the soft threshold; one or two write. The
scores of a pool stay in the L2 cache. Results are those of :mod:`vs_kernels.kernels.topk`.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.newton import MAX_STEPS, balance, bracket, newton_step
from vs_kernels.kernels.scores import MIN_KEY, finite_score
from vs_kernels.kernels.topk_results import load_keys, write_choice, write_loss, write_probs

BINS = tl.constexpr(256)


@triton.jit
def unsigned(key):
    """The key in the same order as an integer >= 0."""
    return key.to(tl.int64) + 2147483648


@triton.jit
def find_digit(counts, bins, rank):
    """The digit of the rank-th largest key from the counts of all digits, and its rank among those with that digit."""
    at_least = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((at_least >= rank).to(tl.int32), axis=0) - 1
    return digit, rank - tl.sum(tl.where(bins > digit, counts, 0), axis=0)


@triton.jit
def _kth_key(scores, n, k, BLOCK: tl.constexpr):
    """The k-th key, how many keys equal to it are kept, and the largest and smallest key."""
    bins = tl.arange(0, BINS)
    prefix = tl.full([], 0, tl.int64)
    rank = k
    largest = tl.full([BLOCK], MIN_KEY, tl.int32)
    smallest = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for step in range(0, 4):
        shift = 24 - 8 * step
        counts = tl.zeros([BINS], tl.int32)
        for start in range(0, n, BLOCK):
            key, inside, _ = load_keys(scores, start, n, BLOCK)
            high = unsigned(key) >> shift
            counts += tl.histogram((high & 255).to(tl.int32), BINS, mask=inside & ((high >> 8) == prefix))
            largest = tl.maximum(largest, key)
            smallest = tl.where(inside, tl.minimum(smallest, key), smallest)
        digit, rank = find_digit(counts, bins, rank)
        prefix = (prefix << 8) | digit
    return (prefix - 2147483648).to(tl.int32), rank, tl.max(largest, axis=0), tl.min(smallest, axis=0)


@triton.jit
def _soft_shift(scores, n, k, pivot, largest, smallest, inverse_temperature, BLOCK: tl.constexpr):
    """The shift with sum sigmoid(z + shift) = k, z = (score - pivot) / temperature; 0 < k < n."""
    low, high = bracket(
        (finite_score(largest) - pivot) * inverse_temperature, (finite_score(smallest) - pivot) * inverse_temperature,
        n, k,
    )  # fmt: skip
    shift = tl.minimum(tl.maximum(low, 0.0), high)
    going, step = n > 0, 0
    while going & (step < MAX_STEPS):
        surplus = tl.full([], 0.0, tl.float64)
        lack = tl.full([], 0.0, tl.float64)
        surplus_slope = tl.full([], 0.0, tl.float64)
        lack_slope = tl.full([], 0.0, tl.float64)
        below = tl.full([], 0, tl.int32)
        for start in range(0, n, BLOCK):
            key, inside, _ = load_keys(scores, start, n, BLOCK)
            sums = balance((finite_score(key) - pivot) * inverse_temperature + shift, inside)
            surplus += sums[0].to(tl.float64)
            lack += sums[1].to(tl.float64)
            surplus_slope += sums[2].to(tl.float64)
            lack_slope += sums[3].to(tl.float64)
            below += sums[4]
        shift, low, high, going = newton_step(
            shift, low, high, surplus.to(tl.float32), lack.to(tl.float32), surplus_slope.to(tl.float32),
            lack_slope.to(tl.float32), below, n, k,
        )  # fmt: skip
        step += 1
    return shift


@triton.jit
def topk_large_kernel(
    scores, ranking, cu_lengths, cu_ks, indices, mask, probs, thresholds, pivots, shifts, losses, grad_scores,
    temperature, inverse_temperature, share, BLOCK: tl.constexpr,
):  # fmt: skip
    """The arguments are those of ``topk_kernel``; the soft Top-K is always wanted."""
    pool = tl.program_id(0)
    begin = tl.load(cu_lengths + pool)
    n = (tl.load(cu_lengths + pool + 1) - begin).to(tl.int32)
    first = tl.load(cu_ks + pool)
    k = (tl.load(cu_ks + pool + 1) - first).to(tl.int32)
    scores += begin
    kth, ties, largest, smallest = _kth_key(scores, n, k, BLOCK)
    moving = (k > 0) & (k < n)
    pivot = tl.where(moving, finite_score(kth), 0.0)
    shift = tl.where(k > 0, float("inf"), -float("inf"))
    if moving:
        shift = _soft_shift(scores, n, k, pivot, largest, smallest, inverse_temperature, BLOCK)
    tl.store(pivots + pool, pivot)
    tl.store(shifts + pool, shift)
    if probs is not None:
        tl.store(thresholds + pool, shift * temperature - pivot)
        write_probs(scores, n, pivot, shift, inverse_temperature, probs + begin, BLOCK)
    if losses is not None:
        write_loss(
            scores, n, k, kth, ties, pivot, shift, inverse_temperature, share, losses + pool, grad_scores + begin, BLOCK
        )
    if (indices is not None) | (mask is not None):
        if ranking is not None:
            scores = ranking + begin
            kth, ties, _, _ = _kth_key(scores, n, k, BLOCK)
        if indices is not None:
            write_choice(scores, n, kth, ties, begin, indices + first, None, BLOCK)
        if mask is not None:
            write_choice(scores, n, kth, ties, begin, None, mask + begin, BLOCK)
