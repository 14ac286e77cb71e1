"""The soft threshold from sums at many trial shifts at once, for pools that many programs share.

A Newton step needs the sums over a whole pool, and so a launch of its own. Here one launch evaluates a few nodes that
enclose the root, and the root follows from the two nodes around it: H(v) = sum sigmoid(z + v) - k is analytic in a
strip of half-width pi, and its Hermite interpolation of degree seven between nodes 0.75 apart misses the root by less
than 2e-7.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.newton import SATURATED
from vs_kernels.kernels.scores import sigmoid

SPACING = tl.constexpr(0.75)
FAR_SPACING = tl.constexpr(16.0)
# Room for rounding beyond a bracket.
MARGIN = tl.constexpr(0.0625)
# Beyond this above ln(k) only exponentials are left of all sigmoids: exp(-16) = 1e-7.
EXPONENTIAL = tl.constexpr(16.0)
EXPONENTIAL_SUM = tl.constexpr(1e-7)
# The widest interval that may hold the k-th score when the nodes are chosen, in temperatures. With it and 2^31 tokens,
# the nodes reach from -21 - 36 to 16 + 21, and six far ones to SATURATED.
MOST_WIDTH = tl.constexpr(36.0)
MOST_NODES = tl.constexpr(144)
# H, the sums of p below 0 and of 1 - p from 0 on, the first three derivatives of H.
SUMS = tl.constexpr(6)


@triton.jit
def _log_root(few, many, width):
    """ln y where few / (1 + exp(width) / y) = many / (1 + y): infinite where that tells nothing."""
    some = (few > 0) & (width <= MOST_WIDTH)
    few, many = tl.maximum(few, 1).to(tl.float32), many.to(tl.float32)
    far = tl.exp(tl.minimum(width, MOST_WIDTH))
    lead = many - few
    root = tl.sqrt(lead * lead + 4.0 * few * many * far)
    # The form that does not cancel.
    y = tl.where(lead > 0.0, (lead + root) / (2.0 * few), 2.0 * many * far / (root - lead))
    return tl.where(some, tl.log(y), float("inf"))


@triton.jit
def narrow(low, high, kept, dropped, width, n, k):
    """A bracket of the shift, narrowed by how many kept and dropped tokens lie within ``width`` of the k-th score.

    At the root sum(1 - p) of the kept tokens equals sum(p) of the dropped ones. The former is at most k sigmoid(-u);
    the latter at least sigmoid(u - width) for each of ``dropped``: no u beyond the equality of these two is the root.
    The other way round for the lower bound.
    """
    return tl.maximum(low, -_log_root(kept, n - k, width)), tl.minimum(high, _log_root(dropped, k, width))


@triton.jit
def place_nodes(low, high, k):
    """First node, number of nodes a SPACING apart, and number of all: the rest are FAR_SPACING apart."""
    low -= MARGIN
    high = tl.minimum(high, SATURATED) + MARGIN
    most = EXPONENTIAL + tl.log(k.to(tl.float32))
    near = tl.maximum(tl.ceil((tl.minimum(high, most) - low) / SPACING), 1.0)
    far = tl.maximum(tl.ceil((high - (low + near * SPACING)) / FAR_SPACING), 0.0)
    near_nodes = near.to(tl.int32) + 1
    return low, near_nodes, near_nodes + far.to(tl.int32)


@triton.jit
def node_value(first, near_nodes, node):
    """The shift at a node."""
    far = tl.maximum(node - (near_nodes - 1), 0)
    return first + (node - far).to(tl.float32) * SPACING + far.to(tl.float32) * FAR_SPACING


@triton.jit
def add_node_sums(z, inside, nodes, surplus, lack, first, second, third, below):
    """Of the sums at nodes [M] over centred scores z [B], the terms of [M, B], added to what was there."""
    x = z[None, :] + nodes[:, None]
    _, small, _ = sigmoid(x)
    small = tl.where(inside[None, :], small, 0.0)
    negative = x < 0.0
    slope = small * (1.0 - small)
    rest = 1.0 - 2.0 * small
    surplus += tl.where(negative, small, 0.0)
    lack += tl.where(negative, 0.0, small)
    first += slope
    second += slope * tl.where(negative, rest, -rest)
    third += slope * (1.0 - 6.0 * slope)
    below += (negative & inside[None, :]).to(tl.int32)
    return surplus, lack, first, second, third, below


@triton.jit
def root_between(sums, stride, first, near_nodes, num_nodes, negatives):
    """The root from the totals at all nodes, [SUMS, stride], the first ``negatives`` of which have H < 0."""
    after = tl.minimum(tl.maximum(negatives, 1), num_nodes - 1)
    left = sums + after - 1
    start, end = node_value(first, near_nodes, after - 1), node_value(first, near_nodes, after)
    if after < near_nodes:
        # Taylor coefficients at both ends, in units of the spacing.
        a0, b0 = tl.load(left), tl.load(left + 1)
        a1, b1 = tl.load(left + 3 * stride) * SPACING, tl.load(left + 3 * stride + 1) * SPACING
        half: tl.constexpr = SPACING * SPACING / 2.0
        a2, b2 = tl.load(left + 4 * stride) * half, tl.load(left + 4 * stride + 1) * half
        sixth: tl.constexpr = SPACING * SPACING * SPACING / 6.0
        a3, b3 = tl.load(left + 5 * stride) * sixth, tl.load(left + 5 * stride + 1) * sixth
        # Divided differences over four times 0 and four times 1.
        d = b0 - a0
        l2, r2 = d - a1, b1 - d
        l3, m3, r3 = l2 - a2, r2 - l2, b2 - r2
        l4, lm4, rm4, r4 = l3 - a3, m3 - l3, r3 - m3, b3 - r3
        l5, m5, r5 = lm4 - l4, rm4 - lm4, r4 - rm4
        l6, r6 = m5 - l5, r5 - m5
        l7 = r6 - l6
        t = -a0 / d
        for _ in range(0, 5):
            t = tl.minimum(tl.maximum(t, 0.0), 1.0)
            w = t - 1.0
            # value and slope of q = l4 + w (l5 + w (l6 + w l7)), then of a0 + t (a1 + t (a2 + t (a3 + t q)))
            q = l4 + w * (l5 + w * (l6 + w * l7))
            q_slope = l5 + w * (2.0 * l6 + w * 3.0 * l7)
            value = a0 + t * (a1 + t * (a2 + t * (a3 + t * q)))
            slope = a1 + t * (2.0 * a2 + t * (3.0 * a3 + t * (4.0 * q + t * q_slope)))
            t -= value / slope
        root = start + tl.minimum(tl.maximum(t, 0.0), 1.0) * (end - start)
    else:
        # sum(p) of the dropped grows by exp(v), sum(1 - p) of the kept falls by exp(-v). The former from the far end
        # where it is still an exponential there: at the near one it may have vanished.
        lack, surplus, later = tl.load(left + 2 * stride), tl.load(left + stride), tl.load(left + stride + 1)
        use_later = later < EXPONENTIAL_SUM
        surplus = tl.where(use_later, later, surplus)
        ratio = lack / tl.where(surplus > 0.0, surplus, 1.0)
        root = tl.where(use_later, 0.5 * (start + end), start) + 0.5 * tl.log(ratio)
        root = tl.where(surplus > 0.0, tl.minimum(tl.maximum(root, start), end), end)
    return tl.minimum(root, SATURATED)
