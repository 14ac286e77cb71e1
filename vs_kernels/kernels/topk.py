"""Hard and soft Top-K of pools that one program holds in registers: everything that any operator wants, in one launch.

The k-th key is found two bits at a time, by counting; ties and slots follow from one scan in index order; the soft
threshold by Newton's method around the k-th score. Nothing is sorted, no buffer can overflow, and scores are read once.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.newton import MAX_STEPS, balance_terms, bracket, newton_step
from vs_kernels.kernels.scores import MIN_KEY, finite_score
from vs_kernels.kernels.topk_results import write_results
from vs_kernels.kernels.topk_tiles import GROUP, first_rows, load_keys, sum_of_tile

# Scores in registers: 16 a thread with 1,024 threads, whose 64 registers are as many as sm_80 to sm_120 have for them.
MOST_IN_REGISTERS = 16384


@triton.jit
def kth_key(keys, k):
    """The k-th largest of the keys, the largest bound that at least k keys reach, and how many keys equal to it are
    kept. For k = 0 a bound that none reaches.

    Counts of a thread take 10 bits: it has at most 16 keys.
    """
    bound = tl.full([], MIN_KEY, tl.int32)
    above = tl.full([], 0, tl.int32)
    for step in range(0, 16):
        unit = tl.full([], 1, tl.int32) << (30 - 2 * step)
        least = bound
        reached = tl.zeros(keys[0].shape, tl.int32)
        for digit in tl.static_range(3):
            least += unit
            for tile in tl.static_range(len(keys)):
                reached += (keys[tile] >= least).to(tl.int32) << (10 * digit)
        # Three counts of at most 16,384 in one sum, so that two less cross the program.
        wide = reached.to(tl.int64)
        counts = sum_of_tile((wide & 0x3FF) | ((wide & 0xFFC00) << 10) | ((wide & 0x3FF00000) << 20))
        for digit in tl.static_range(3):
            reach = ((counts >> (20 * digit)) & 0xFFFFF).to(tl.int32)
            bound += tl.where(reach >= k, unit, 0)
            above = tl.maximum(above, tl.where(reach >= k, 0, reach))
    return bound, k - above


@triton.jit
def _add(a, b, c, d, e, other_a, other_b, other_c, other_d, other_e):
    return a + other_a, b + other_b, c + other_c, d + other_d, e + other_e


@triton.jit
def _balance_of_pool(keys, rows, n, pivot, shift, inverse_temperature):
    """The five sums of :func:`balance_terms` over a pool."""
    surplus = tl.zeros(rows.shape, tl.float32)
    lack = tl.zeros(rows.shape, tl.float32)
    surplus_slope = tl.zeros(rows.shape, tl.float32)
    lack_slope = tl.zeros(rows.shape, tl.float32)
    below = tl.zeros(rows.shape, tl.int32)
    for start in range(0, len(keys), GROUP):
        group = keys[:GROUP]
        keys = keys[GROUP:] + group
        for tile in tl.static_range(GROUP):
            x = (finite_score(group[tile]) - pivot) * inverse_temperature + shift
            terms = balance_terms(x, rows < n - (start + tile) * rows.shape[1])
            surplus += terms[0]
            lack += terms[1]
            surplus_slope += terms[2]
            lack_slope += terms[3]
            below += terms[4]
    sums = (tl.sum(surplus, 1), tl.sum(lack, 1), tl.sum(surplus_slope, 1), tl.sum(lack_slope, 1), tl.sum(below, 1))
    return tl.reduce(sums, 0, _add)


@triton.jit
def _soft_shift(keys, rows, n, k, pivot, inverse_temperature):
    """The shift with sum sigmoid(z + shift) = k; 0 < k < n."""
    largest, smallest = keys[0], tl.full(rows.shape, 2**31 - 1, tl.int32)
    for tile in tl.static_range(len(keys)):
        largest = tl.maximum(largest, keys[tile])
        smallest = tl.minimum(smallest, tl.where(rows < n - tile * rows.shape[1], keys[tile], 2**31 - 1))
    top = finite_score(tl.max(tl.max(largest, axis=1), axis=0))
    bottom = finite_score(tl.min(tl.min(smallest, axis=1), axis=0))
    low, high = bracket((top - pivot) * inverse_temperature, (bottom - pivot) * inverse_temperature, n, k)
    shift = tl.minimum(tl.maximum(low, 0.0), high)
    going, step = n > 0, 0
    while going & (step < MAX_STEPS):
        sums = _balance_of_pool(keys, rows, n, pivot, shift, inverse_temperature)
        shift, low, high, going = newton_step(shift, low, high, sums[0], sums[1], sums[2], sums[3], sums[4], n, k)
        step += 1
    return shift


@triton.jit
def topk_kernel(
    scores,  # float32 [T]
    ranking,  # float32 [T], what the hard Top-K goes by, without probs and losses; None: the scores
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
    TILES: tl.constexpr,
    WARPS: tl.constexpr,
    LANES: tl.constexpr,
):
    pool = tl.program_id(0)
    begin = tl.load(cu_lengths + pool)
    n = (tl.load(cu_lengths + pool + 1) - begin).to(tl.int32)
    k = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
    tl.static_assert(ranking is None or (probs is None and losses is None))
    rows = first_rows(TILES, WARPS, LANES)
    keys = load_keys(scores + begin, rows, n, TILES)
    kth, ties = kth_key(keys, k)
    pivot, shift = 0.0, 0.0
    if pivots is not None:
        moving = (k > 0) & (k < n)
        pivot = tl.where(moving, finite_score(kth), 0.0)
        shift = tl.where(k > 0, float("inf"), -float("inf"))
        if moving:
            shift = _soft_shift(keys, rows, n, k, pivot, inverse_temperature)
        tl.store(pivots + pool, pivot)
        tl.store(shifts + pool, shift)
        if thresholds is not None:
            tl.store(thresholds + pool, shift * temperature - pivot)
    if ranking is not None:
        keys = load_keys(ranking + begin, rows, n, TILES)
        kth, ties = kth_key(keys, k)
    # Read again rather than held while the shift is sought, which takes all registers.
    begin, first = tl.load(cu_lengths + pool), tl.load(cu_ks + pool)
    write_results(
        keys, rows, n, k, kth, ties, pivot, shift, inverse_temperature, share, begin, first, indices, mask, probs,
        None if losses is None else losses + pool, grad_scores,
    )  # fmt: skip
