"""Hard and soft Top-K of large pools by many programs, with the loss, in four launches.

Two launches count the two leading digits of the keys, 12 bits each. The third counts the keys around the k-th one by
one and evaluates the soft Top-K at the nodes of :mod:`vs_kernels.kernels.newton_nodes`; the last of its programs to
arrive at a pool finds the k-th key and solves for the shift. The fourth launch writes. No sum depends on the order of
arrival.

Where 24 bits leave the k-th score uncertain by many temperatures, nodes would be too many. But then single keys lie far
apart, and the counts of those around the k-th say all about its surroundings: what is below them is an exponential,
what is above them saturated.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.launch import launch
from vs_kernels.kernels.newton import MAX_STEPS, bracket, newton_step
from vs_kernels.kernels.newton_nodes import (
    MOST_NODES,
    MOST_WIDTH,
    SUMS,
    add_node_sums,
    narrow,
    node_value,
    place_nodes,
    root_between,
)
from vs_kernels.kernels.pools import find_tile, first_tile, num_tiles
from vs_kernels.kernels.scores import MIN_KEY, finite_score, is_finite, score_key, sigmoid
from vs_kernels.kernels.topk_digits import add_column, find_digit_of_tiles, unsigned, write_digits
from vs_kernels.kernels.topk_results import cross_entropy, kept_slots, logits

TILE_ROWS = 4096
BLOCK = 1024
# Of the third launch: nodes and scores that a program works on at a time.
NODES_AT_ONCE, NODE_BLOCK = 4, 512
# Programs of the third launch that fill a chip; a tile has at most this many programs, each with its share of nodes.
ENOUGH_PROGRAMS, MOST_SPLITS = 256, 8

BINS = tl.constexpr(4096)
# Keys counted one by one: 256 that may be the k-th, after those at least twice as wide as what they may span.
WINDOW = tl.constexpr(2048)
BEFORE = tl.constexpr(1024)
AFTER = tl.constexpr(1280)
MAX_KEY = tl.constexpr(2**31 - 1)
# Tiles and nodes whose sums the last program adds up at a time.
TILE_GROUP, NODE_GROUP = tl.constexpr(64), tl.constexpr(16)
# Of the state of a pool, int32 [S, 8]: the leading digits of the k-th key, how many keys have larger ones (of those
# with the same digits before), how many reach the first; place of the k-th key in the window, the key, and how many
# equal to it are kept.
DIGIT_1, ABOVE_1, REACH_1, DIGIT_2, PLACE, KTH, TIES = (tl.constexpr(field) for field in range(7))
FIELDS = tl.constexpr(8)


@triton.jit
def _edge_score(key):
    """The score of a key, int64 of any value, that need not be one of a number."""
    return finite_score(tl.minimum(tl.maximum(key, -0x7F800000), 0x7F7FFFFF).to(tl.int32))


@triton.jit
def _tiles_of(cu_lengths, pool, TILE_ROWS: tl.constexpr):
    """Length, first tile, and number of tiles with rows."""
    begin = tl.load(cu_lengths + pool)
    length = tl.load(cu_lengths + pool + 1) - begin
    return length.to(tl.int32), first_tile(begin, pool, TILE_ROWS), tl.cdiv(length, TILE_ROWS).to(tl.int32)


@triton.jit
def _is_last(counter, expected):
    """Whether all other programs have arrived; what they wrote before is then there to be read."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1


@triton.jit(do_not_specialize=["num_pools", "num_tiles"])
def _count_kernel(
    scores,  # float32 [T]
    cu_lengths,  # int64 [S + 1]
    cu_ks,  # int64 [S + 1]
    reached,  # int32 [2, tiles, BINS], keys of a tile that reach a digit
    groups,  # int32 [2, tiles, 64]
    extremes,  # int32 [2, tiles], largest and smallest key
    state,  # int32 [S, FIELDS]
    window,  # int32 [S, WINDOW], keys of a pool that equal one; zeroed here
    counters,  # int32 [S + 1], programs that have arrived, at the end for all pools together; zeroed here
    num_pools,
    num_tiles,
    STEP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    tile = tl.program_id(0)
    pool, begin, end = find_tile(cu_lengths, num_pools, tile, TILE_ROWS)
    rows = begin + tl.arange(0, TILE_ROWS)
    inside = rows < end
    key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
    _, first, tiles = _tiles_of(cu_lengths, pool, TILE_ROWS)
    if STEP == 0:
        digits = (unsigned(key) >> 20).to(tl.int32)
        tl.store(extremes + tile, tl.max(tl.where(inside, key, MIN_KEY), axis=0))
        tl.store(extremes + num_tiles + tile, tl.min(tl.where(inside, key, MAX_KEY), axis=0))
        if tile == first:
            tl.store(window + pool.to(tl.int64) * WINDOW + tl.arange(0, WINDOW), tl.zeros([WINDOW], tl.int32))
            tl.store(counters + pool, 0)
        if tile == 0:
            tl.store(counters + num_pools, 0)
    else:
        k = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
        digit, above, reach = find_digit_of_tiles(reached, groups, first, tiles, k, BINS)
        if tile == first:
            state += pool.to(tl.int64) * FIELDS
            tl.store(state + DIGIT_1, digit)
            tl.store(state + ABOVE_1, above)
            tl.store(state + REACH_1, reach)
        high = (unsigned(key) >> 8).to(tl.int32)
        inside = inside & ((high >> 12) == digit)
        digits = high & (BINS - 1)
    write_digits(digits, inside, reached, groups, STEP * num_tiles.to(tl.int64) + tile, BINS)


@triton.jit
def _extremes_of(extremes, num_tiles, first, tiles, BLOCK: tl.constexpr):
    """The largest and the smallest key of a pool."""
    largest = tl.full([BLOCK], MIN_KEY, tl.int32)
    smallest = tl.full([BLOCK], MAX_KEY, tl.int32)
    for start in range(0, tiles, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(extremes + first + rows, mask=rows < tiles, other=MIN_KEY))
        rest = tl.load(extremes + num_tiles + first + rows, mask=rows < tiles, other=MAX_KEY)
        smallest = tl.minimum(smallest, rest)
    return tl.max(largest, axis=0), tl.min(smallest, axis=0)


@triton.jit
def _shift_of_nodes(sums, below, totals, num_tiles, first_of_pool, tiles, first, near_nodes, num_nodes, n, k):
    """The shift relative to the scores' centre, from the sums of all tiles at all nodes."""
    negatives = tl.full([], 0, tl.int32)
    plane = num_tiles.to(tl.int64) * MOST_NODES
    for start in range(0, num_nodes, NODE_GROUP):
        nodes = start + tl.arange(0, NODE_GROUP)
        wanted = nodes < num_nodes
        surplus = tl.zeros([TILE_GROUP, NODE_GROUP], tl.float32)
        lack = tl.zeros([TILE_GROUP, NODE_GROUP], tl.float32)
        slope_1 = tl.zeros([TILE_GROUP, NODE_GROUP], tl.float32)
        slope_2 = tl.zeros([TILE_GROUP, NODE_GROUP], tl.float32)
        slope_3 = tl.zeros([TILE_GROUP, NODE_GROUP], tl.float32)
        under = tl.zeros([TILE_GROUP, NODE_GROUP], tl.int32)
        for other in range(0, tiles, TILE_GROUP):
            rows = other + tl.arange(0, TILE_GROUP)
            inside = (rows < tiles)[:, None] & wanted[None, :]
            cells = (first_of_pool + rows)[:, None] * MOST_NODES + nodes[None, :]
            surplus += tl.load(sums + cells, mask=inside, other=0.0)
            lack += tl.load(sums + plane + cells, mask=inside, other=0.0)
            slope_1 += tl.load(sums + 2 * plane + cells, mask=inside, other=0.0)
            slope_2 += tl.load(sums + 3 * plane + cells, mask=inside, other=0.0)
            slope_3 += tl.load(sums + 4 * plane + cells, mask=inside, other=0.0)
            under += tl.load(below + cells, mask=inside, other=0)
        more, less = tl.sum(surplus, axis=0), tl.sum(lack, axis=0)
        balance = more - less + (n - k - tl.sum(under, axis=0)).to(tl.float32)
        negatives += tl.sum(((balance < 0.0) & wanted).to(tl.int32), axis=0)
        tl.store(totals + nodes, balance, mask=wanted)
        tl.store(totals + MOST_NODES + nodes, more, mask=wanted)
        tl.store(totals + 2 * MOST_NODES + nodes, less, mask=wanted)
        tl.store(totals + 3 * MOST_NODES + nodes, tl.sum(slope_1, axis=0), mask=wanted)
        tl.store(totals + 4 * MOST_NODES + nodes, tl.sum(slope_2, axis=0), mask=wanted)
        tl.store(totals + 5 * MOST_NODES + nodes, tl.sum(slope_3, axis=0), mask=wanted)
    tl.debug_barrier()
    return root_between(totals, MOST_NODES, first, near_nodes, num_nodes, negatives)


@triton.jit
def _shift_of_window(window, low_key, pivot, largest, smallest, under, beneath, inverse_temperature, n, k):
    """The shift relative to the k-th score from the counts of the keys in the window.

    Args:
        under: keys below the window.
        beneath: sum over these of exp(their distance from the window, in temperatures).
    """
    bins = tl.arange(0, WINDOW)
    count = tl.load(window + bins)
    z = (_edge_score(low_key - BEFORE + bins) - pivot) * inverse_temperature
    foot = (_edge_score(low_key - BEFORE) - pivot) * inverse_temperature + tl.log(beneath)
    low, high = bracket(
        (finite_score(largest) - pivot) * inverse_temperature, (finite_score(smallest) - pivot) * inverse_temperature,
        n, k,
    )  # fmt: skip
    shift = tl.minimum(tl.maximum(low, 0.0), high)
    going, step = n > 0, 0
    while going & (step < MAX_STEPS):
        x = z + shift
        _, small, _ = sigmoid(x)
        term = tl.where(count > 0, small * count.to(tl.float32), 0.0)
        slope = term * (1.0 - small)
        negative = x < 0.0
        rest = tl.exp(tl.minimum(foot + shift, 80.0))
        surplus = tl.sum(tl.where(negative, term, 0.0), axis=0) + rest
        lack = tl.sum(tl.where(negative, 0.0, term), axis=0)
        surplus_slope = tl.sum(tl.where(negative, slope, 0.0), axis=0) + rest
        lack_slope = tl.sum(tl.where(negative, 0.0, slope), axis=0)
        below = under + tl.sum(tl.where(negative, count, 0), axis=0)
        shift, low, high, going = newton_step(shift, low, high, surplus, lack, surplus_slope, lack_slope, below, n, k)
        step += 1
    return shift


@triton.jit(do_not_specialize=["num_pools", "num_tiles"])
def _evaluate_kernel(
    scores, cu_lengths, cu_ks, reached, groups, extremes, state, window, counters,
    window_reached,  # int32 [tiles, WINDOW], keys of a tile in the window that reach one
    window_groups,  # int32 [tiles, 64]
    sums,  # float32 [5, tiles, MOST_NODES], of a tile at each node: SUMS without the first
    below,  # int32 [tiles, MOST_NODES], scores of a tile below 0 at each node
    totals,  # float32 [S, SUMS, MOST_NODES], of a pool
    pivots,  # float32 [S]
    shifts,  # float32 [S]
    thresholds,  # float32 [S]; None: not wanted
    num_pools,
    num_tiles,
    temperature,
    inverse_temperature,
    TILE_ROWS: tl.constexpr,
    NODES_AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    pool, begin, end = find_tile(cu_lengths, num_pools, tile, TILE_ROWS)
    n, first, tiles = _tiles_of(cu_lengths, pool, TILE_ROWS)
    k = (tl.load(cu_ks + pool + 1) - tl.load(cu_ks + pool)).to(tl.int32)
    state += pool.to(tl.int64) * FIELDS
    window += pool.to(tl.int64) * WINDOW
    digit_1, above_1, reach_1 = tl.load(state + DIGIT_1), tl.load(state + ABOVE_1), tl.load(state + REACH_1)
    second = num_tiles.to(tl.int64)
    digit_2, above_2, reach_2 = find_digit_of_tiles(
        reached + second * BINS, groups + second * 64, first, tiles, k - above_1, BINS
    )
    largest, smallest = _extremes_of(extremes, num_tiles, first, tiles, BLOCK)

    # The smallest key that may be the k-th, and in temperatures how far all that share 24 or 12 bits with it extend.
    low_key = ((digit_1.to(tl.int64) << 20) | (digit_2 << 8)) - 2147483648
    centre = _edge_score(low_key)
    width = (_edge_score(low_key + 255) - centre) * inverse_temperature
    wide_key = (digit_1.to(tl.int64) << 20) - 2147483648
    wide = (_edge_score(wide_key + 0xFFFFF) - _edge_score(wide_key)) * inverse_temperature
    moving = (k > 0) & (k < n)
    rank_1, rank_2 = k - above_1, k - above_1 - above_2
    apart = moving & (width > MOST_WIDTH)
    first_node, near_nodes, num_nodes = 0.0, 0, 0
    if moving & (width <= MOST_WIDTH):
        rest = (n - k).to(tl.float32)
        low, high = narrow(-tl.log(rest + 1.0), float("inf"), rank_2, reach_2 - above_2 - rank_2, width, n, k)
        low, high = narrow(low, high, rank_1, reach_1 - above_1 - rank_1, wide, n, k)
        logit = tl.log(k.to(tl.float32) / rest)
        low = tl.maximum(low - width, logit - (finite_score(largest) - centre) * inverse_temperature)
        high = tl.minimum(high, logit - (finite_score(smallest) - centre) * inverse_temperature)
        first_node, near_nodes, num_nodes = place_nodes(low, high, k)

    plane = num_tiles.to(tl.int64) * MOST_NODES
    own = sums + tile.to(tl.int64) * MOST_NODES
    own_below = below + tile.to(tl.int64) * MOST_NODES
    if tl.program_id(1) == 0:
        rows = begin + tl.arange(0, TILE_ROWS)
        inside = rows < end
        key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
        place = key.to(tl.int64) - (low_key - BEFORE)
        counted = inside & (place >= 0) & (place < WINDOW)
        digits = place.to(tl.int32)
        count = write_digits(digits, counted, window_reached, window_groups, tile, WINDOW)
        if apart:
            bins = tl.arange(0, WINDOW)
            tl.atomic_add(window + bins, count, mask=count > 0, sem="relaxed")
            distance = (finite_score(key) - _edge_score(low_key - BEFORE)) * inverse_temperature
            tl.store(own, tl.sum(tl.where(inside & (place < 0), tl.exp(tl.minimum(distance, 0.0)), 0.0), axis=0))
    for start in range(tl.program_id(1) * NODES_AT_ONCE, num_nodes, tl.num_programs(1) * NODES_AT_ONCE):
        nodes = start + tl.arange(0, NODES_AT_ONCE)
        shift = node_value(first_node, near_nodes, nodes)
        surplus = tl.zeros([NODES_AT_ONCE, BLOCK], tl.float32)
        lack = tl.zeros([NODES_AT_ONCE, BLOCK], tl.float32)
        slope_1 = tl.zeros([NODES_AT_ONCE, BLOCK], tl.float32)
        slope_2 = tl.zeros([NODES_AT_ONCE, BLOCK], tl.float32)
        slope_3 = tl.zeros([NODES_AT_ONCE, BLOCK], tl.float32)
        under = tl.zeros([NODES_AT_ONCE, BLOCK], tl.int32)
        for offset in range(0, (end - begin).to(tl.int32), BLOCK):
            rows = begin + offset + tl.arange(0, BLOCK)
            inside = rows < end
            key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
            z = (finite_score(key) - centre) * inverse_temperature
            surplus, lack, slope_1, slope_2, slope_3, under = add_node_sums(
                z, inside, shift, surplus, lack, slope_1, slope_2, slope_3, under
            )
        wanted = nodes < num_nodes
        tl.store(own + nodes, tl.sum(surplus, axis=1), mask=wanted)
        tl.store(own + plane + nodes, tl.sum(lack, axis=1), mask=wanted)
        tl.store(own + 2 * plane + nodes, tl.sum(slope_1, axis=1), mask=wanted)
        tl.store(own + 3 * plane + nodes, tl.sum(slope_2, axis=1), mask=wanted)
        tl.store(own + 4 * plane + nodes, tl.sum(slope_3, axis=1), mask=wanted)
        tl.store(own_below + nodes, tl.sum(under, axis=1), mask=wanted)

    slots = first_tile(tl.load(cu_lengths + pool + 1), pool + 1, TILE_ROWS) - first
    if _is_last(counters + pool, (slots * tl.num_programs(1)).to(tl.int32)):
        # Keys of the window beyond those that may be the k-th rank before it.
        after = add_column(window_groups, first, tiles, 64, AFTER // (WINDOW // 64))
        place, above, _ = find_digit_of_tiles(window_reached, window_groups, first, tiles, rank_2 + after, WINDOW)
        kth = (low_key - BEFORE + place).to(tl.int32)
        ties = rank_2 + after - above
        pivot = tl.where(moving, finite_score(kth), 0.0)
        shift = tl.where(k > 0, float("inf"), -float("inf"))
        if apart:
            under = n - (above_1 + above_2 - after) - add_column(window_groups, first, tiles, 64, 0)
            beneath = add_column(sums, first, tiles, MOST_NODES, 0)
            shift = _shift_of_window(
                window, low_key, pivot, largest, smallest, under, beneath, inverse_temperature, n, k
            )
        elif moving:
            totals += pool.to(tl.int64) * SUMS * MOST_NODES
            shift = _shift_of_nodes(
                sums, below, totals, num_tiles, first, tiles, first_node, near_nodes, num_nodes, n, k
            )
            shift += (pivot - centre) * inverse_temperature
        tl.store(pivots + pool, pivot)
        tl.store(shifts + pool, shift)
        if thresholds is not None:
            tl.store(thresholds + pool, shift * temperature - pivot)
        tl.store(state + DIGIT_2, digit_2)
        tl.store(state + PLACE, place)
        # Where nothing is kept, no key reaches the largest.
        tl.store(state + KTH, tl.where(k > 0, kth, MAX_KEY))
        tl.store(state + TIES, tl.where(k > 0, ties, 0))


@triton.jit
def _kept_before(reached, window_reached, window_groups, state, num_tiles, first, tiles):
    """How many keys of the first ``tiles`` tiles of a pool are above the k-th, and how many equal to it."""
    place = tl.load(state + PLACE)
    within = add_column(window_reached, first, tiles, WINDOW, place + 1)
    equal = add_column(window_reached, first, tiles, WINDOW, place) - within
    above = within - add_column(window_groups, first, tiles, 64, AFTER // (WINDOW // 64))
    digit_1, digit_2 = tl.load(state + DIGIT_1) + 1, tl.load(state + DIGIT_2) + 1
    if digit_1 < BINS:
        above += add_column(reached, first, tiles, BINS, digit_1)
    if digit_2 < BINS:
        above += add_column(reached + num_tiles.to(tl.int64) * BINS, first, tiles, BINS, digit_2)
    return above, equal


@triton.jit(do_not_specialize=["num_pools", "num_tiles"])
def _write_kernel(
    scores, cu_lengths, cu_ks, reached, state, counters, window_reached, window_groups, pivots, shifts,
    indices,  # int64 [K]; None: not wanted, as for all that follow
    mask,  # bool [T]
    probs,  # float32 [T]
    partial_losses,  # float64 [tiles], with loss and grad_scores
    loss,  # float32 []: share of the sum over all pools of softplus(x) - m x
    grad_scores,  # float32 [T], its gradient
    num_pools,
    num_tiles,
    inverse_temperature,
    share,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    pool, begin, end = find_tile(cu_lengths, num_pools, tile, TILE_ROWS)
    start = tl.load(cu_lengths + pool)
    n = (tl.load(cu_lengths + pool + 1) - start).to(tl.int32)
    first = first_tile(start, pool, TILE_ROWS)
    slots = tl.load(cu_ks + pool)
    k = (tl.load(cu_ks + pool + 1) - slots).to(tl.int32)
    moving = (k > 0) & (k < n)
    state += pool.to(tl.int64) * FIELDS
    kth, ties = tl.load(state + KTH), tl.load(state + TIES)
    pivot, shift = tl.load(pivots + pool), tl.load(shifts + pool)
    above_before, ties_before = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    if (indices is not None) | (mask is not None) | (loss is not None):
        above_before, ties_before = _kept_before(
            reached, window_reached, window_groups, state, num_tiles, first, (tile - first).to(tl.int32)
        )
    total = tl.full([], 0.0, tl.float64)
    for offset in range(0, (end - begin).to(tl.int32), BLOCK):
        rows = begin + offset + tl.arange(0, BLOCK)
        inside = rows < end
        key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
        x = logits(key, pivot, shift, inverse_temperature)
        if probs is not None:
            tl.store(probs + rows, sigmoid(x)[0], mask=inside)
        if (indices is not None) | (mask is not None) | (loss is not None):
            kept, slot, above_before, ties_before = kept_slots(key, inside, kth, ties, above_before, ties_before)
            if indices is not None:
                tl.store(indices + slots + slot, rows, mask=kept)
            if mask is not None:
                tl.store(mask + rows, kept, mask=inside)
            if loss is not None:
                term, excess = cross_entropy(x, kept)
                total += tl.sum(tl.where(inside & moving, term, 0.0), axis=0).to(tl.float64)
                # sum(p) = k makes the sum of p - m over a pool 0, and with it what the shift adds to the gradient.
                grad = tl.where(is_finite(key) & moving, share * inverse_temperature * excess, 0.0)
                tl.store(grad_scores + rows, grad, mask=inside)
    if loss is not None:
        tl.store(partial_losses + tile, total)
        if _is_last(counters + num_pools, num_tiles):
            tl.store(loss, (add_column(partial_losses, 0, num_tiles, 1, 0) * share).to(tl.float32))


def soft_topk_split(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    *,
    pivots: Tensor,  # float32 [S], outputs, the others where wanted
    shifts: Tensor,  # float32 [S]
    thresholds: Tensor | None = None,  # float32 [S]
    indices: Tensor | None = None,  # int64 [K]
    mask: Tensor | None = None,  # bool [T]
    probs: Tensor | None = None,  # float32 [T]
    loss: Tensor | None = None,  # float32 [], with grad_scores
    grad_scores: Tensor | None = None,  # float32 [T]
    temperature: float,
    share: float,
) -> None:
    """Write the wanted results of all pools: three launches for pivots, shifts and thresholds, one more for others."""
    num_pools = cu_lengths.shape[0] - 1
    tiles = num_tiles(scores.shape[0], num_pools, TILE_ROWS)

    def integers(*shape: int) -> Tensor:
        return scores.new_empty(shape, dtype=torch.int32)

    reached, groups, extremes = integers(2, tiles, BINS.value), integers(2, tiles, 64), integers(2, tiles)
    window_reached, window_groups = integers(tiles, WINDOW.value), integers(tiles, 64)
    state, window = integers(num_pools, FIELDS.value), integers(num_pools, WINDOW.value)
    counters, below = integers(num_pools + 1), integers(tiles, MOST_NODES.value)
    sums = scores.new_empty(SUMS.value - 1, tiles, MOST_NODES.value)
    totals = scores.new_empty(num_pools, SUMS.value, MOST_NODES.value)
    pools, counts, inverse = (scores, cu_lengths, cu_ks), (num_pools, tiles), 1.0 / temperature
    known = (*pools, reached, groups, extremes, state, window, counters)
    for step in range(2):
        launch(_count_kernel, (tiles,), *known, *counts, STEP=step, TILE_ROWS=TILE_ROWS, num_warps=8)
    splits = max(1, min(MOST_SPLITS, ENOUGH_PROGRAMS // tiles))
    launch(
        _evaluate_kernel, (tiles, splits), *known, window_reached, window_groups, sums, below, totals, pivots, shifts,
        thresholds, *counts, temperature, inverse, TILE_ROWS=TILE_ROWS, NODES_AT_ONCE=NODES_AT_ONCE,
        BLOCK=min(NODE_BLOCK, TILE_ROWS), num_warps=8,
    )  # fmt: skip
    if indices is None and mask is None and probs is None and loss is None:
        return
    partial_losses = None if loss is None else scores.new_empty(tiles, dtype=torch.float64)
    launch(
        _write_kernel, (tiles,), *pools, reached, state, counters, window_reached, window_groups, pivots,
        shifts, indices, mask, probs, partial_losses, loss, grad_scores, *counts, inverse, share, TILE_ROWS=TILE_ROWS,
        BLOCK=min(BLOCK, TILE_ROWS), num_warps=8,
    )  # fmt: skip
