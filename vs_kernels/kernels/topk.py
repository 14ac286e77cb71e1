"""Hard and soft Top-K of pools that one program holds in registers: everything that any operator wants, in one launch.

The k-th key is found two bits at a time, by counting; ties and slots follow from one scan in index order; the soft
threshold by Newton's method around the k-th score. Nothing is sorted, and no buffer can overflow.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.newton import MAX_STEPS, balance, bracket, newton_step
from vs_kernels.kernels.scores import finite_score
from vs_kernels.kernels.topk_results import load_keys, write_choice, write_loss, write_probs

# Scores in registers: 32 a thread with 16 warps, as many as sm_80 to sm_120 hold without spills.
MOST_IN_REGISTERS = 16384


@triton.jit
def kth_key(key, k):
    """The k-th largest of the keys, the largest bound that at least k keys reach, and how many keys equal to it are
    kept. For k = 0 a bound that none reaches."""
    bound = tl.full([], -(2**31), tl.int64)
    for step in range(0, 16):
        unit = tl.full([], 1, tl.int64) << (30 - 2 * step)
        # Two counts of at most 16,384 in one sum, so that one less crosses the program.
        reached = (key >= (bound + unit).to(tl.int32)).to(tl.int32)
        reached |= (key >= (bound + 2 * unit).to(tl.int32)).to(tl.int32) << 16
        counts = tl.sum(reached, axis=0)
        digit = ((counts & 0xFFFF) >= k).to(tl.int64) + ((counts >> 16) >= k).to(tl.int64)
        digit += (tl.sum((key >= (bound + 3 * unit).to(tl.int32)).to(tl.int32), axis=0) >= k).to(tl.int64)
        bound += digit * unit
    kth = bound.to(tl.int32)
    return kth, k - tl.sum((key > kth).to(tl.int32), axis=0)


@triton.jit
def _soft_shift(z, inside, n, k):
    """The shift with sum sigmoid(z + shift) = k; 0 < k < n."""
    smallest = tl.min(tl.where(inside, z, float("inf")), axis=0)
    low, high = bracket(tl.max(tl.where(inside, z, -float("inf")), axis=0), smallest, n, k)
    shift = tl.minimum(tl.maximum(low, 0.0), high)
    going, step = n > 0, 0
    while going & (step < MAX_STEPS):
        surplus, lack, surplus_slope, lack_slope, below = balance(z + shift, inside)
        shift, low, high, going = newton_step(shift, low, high, surplus, lack, surplus_slope, lack_slope, below, n, k)
        step += 1
    return shift


@triton.jit
def topk_kernel(
    scores,  # float32 [T]
    ranking,  # float32 [T], what the hard Top-K goes by; None: the scores
    cu_lengths,  # int64 [S + 1]
    cu_ks,  # int64 [S + 1]
    indices,  # int64 [K]; None: not wanted, as for all that follow
    mask,  # bool [T]
    probs,  # float32 [T], with thresholds, pivots and shifts
    thresholds,  # float32 [S]
    pivots,  # float32 [S], with shifts
    shifts,  # float32 [S]
    losses,  # float32 [S]: share of the sum over the pool of softplus(x) - m x; with grad_scores, pivots and shifts
    grad_scores,  # float32 [T], their gradient
    temperature,
    inverse_temperature,
    share,
    BLOCK: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
):
    pool = tl.program_id(0)
    begin = tl.load(cu_lengths + pool)
    n = (tl.load(cu_lengths + pool + 1) - begin).to(tl.int32)
    first = tl.load(cu_ks + pool)
    k = (tl.load(cu_ks + pool + 1) - first).to(tl.int32)
    key, inside, _ = load_keys(scores + begin, 0, n, BLOCK)
    kth, ties = kth_key(key, k)
    if pivots is not None:
        moving = (k > 0) & (k < n)
        pivot = tl.where(moving, finite_score(kth), 0.0)
        shift = tl.where(k > 0, float("inf"), -float("inf"))
        # The search for the shift needs the registers of all that follows: it goes to memory and comes back.
        if losses is not None:
            tl.store(losses + pool, kth.to(tl.float32, bitcast=True))
            tl.store(shifts + pool, ties.to(tl.float32, bitcast=True))
        tl.store(pivots + pool, pivot)
        if moving:
            shift = _soft_shift((finite_score(key) - pivot) * inverse_temperature, inside, n, k)
        tl.debug_barrier()
        pivot = tl.load(pivots + pool)
        if losses is not None:
            kth = tl.load(losses + pool).to(tl.int32, bitcast=True)
            ties = tl.load(shifts + pool).to(tl.int32, bitcast=True)
            tl.debug_barrier()
        tl.store(shifts + pool, shift)
        begin = tl.load(cu_lengths + pool)
        n = (tl.load(cu_lengths + pool + 1) - begin).to(tl.int32)
        k = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
        if probs is not None:
            tl.store(thresholds + pool, shift * temperature - pivot)
            write_probs(scores + begin, n, pivot, shift, inverse_temperature, probs + begin, WRITE_BLOCK)
        if losses is not None:
            write_loss(
                scores + begin, n, k, kth, ties, pivot, shift, inverse_temperature, share, losses + pool,
                grad_scores + begin, WRITE_BLOCK,
            )  # fmt: skip
    ranks = scores + begin
    if ranking is not None:
        ranks = ranking + begin
        key, _, _ = load_keys(ranks, 0, n, BLOCK)
        kth, ties = kth_key(key, k)
    if indices is not None:
        write_choice(ranks, n, kth, ties, begin, indices + first, None, WRITE_BLOCK)
    if mask is not None:
        write_choice(ranks, n, kth, ties, begin, None, mask + begin, WRITE_BLOCK)
