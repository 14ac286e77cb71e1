"""The soft threshold: Newton's method around the k-th score, safeguarded by a bracket."""

import triton
import triton.language as tl

from vs_kernels.kernels.scores import sigmoid

MAX_STEPS = tl.constexpr(64)
# A Newton step leaves an error of about its square: after one of this size the shift is exact to float32.
LAST_STEP = tl.constexpr(2e-4)
# Beyond it, 1 - sigmoid is 0 in float32.
SATURATED = tl.constexpr(104.0)


@triton.jit
def balance_terms(x, inside):
    """Of the logits: min(p, 1 - p) and p (1 - p), each below 0 and from 0 on, and whether they are below; 0 outside."""
    _, small, _ = sigmoid(x)
    small = tl.where(inside, small, 0.0)
    slope = small * (1.0 - small)
    below = x < 0.0
    return (
        tl.where(below, small, 0.0),
        tl.where(below, 0.0, small),
        tl.where(below, slope, 0.0),
        tl.where(below, 0.0, slope),
        (below & inside).to(tl.int32),
    )


@triton.jit
def bracket(largest, smallest, n, k):
    """Between what the shift lies, from the centred scores' extremes.

    If every token had the largest score, the shift of the lower bound would give sum(p) = k; so with the others it
    gives less. And only k - 1 tokens are above the pivot: at -ln(n - k + 1) those below add up to less than one.
    """
    rest = (n - k).to(tl.float32)
    logit = tl.log(k.to(tl.float32) / rest)
    return tl.maximum(logit - largest, -tl.log(rest + 1.0)), tl.minimum(logit - smallest, SATURATED)


@triton.jit
def newton_step(shift, low, high, surplus_sum, lack_sum, surplus_slope, lack_slope, below, n, k):
    """The next shift, its bracket, and whether to go on.

    sum(p) = k where what the tokens with p < 1/2 have above 0 makes up for what the others have below 1, and for how
    many more or fewer than k those are. The logarithms of the two sides are nearly linear in the shift, also where all
    probabilities are small or saturated, so that Newton's method takes few steps.
    """
    ahead = (n - below - k).to(tl.float32)
    surplus = surplus_sum + tl.maximum(ahead, 0.0)
    lack = lack_sum + tl.maximum(-ahead, 0.0)
    low = tl.where(surplus > lack, low, shift)
    high = tl.where(surplus > lack, shift, high)
    newton = shift - tl.log(surplus / lack) / (surplus_slope / surplus + lack_slope / lack)
    inside = (low < newton) & (newton < high)
    following = tl.where(inside, newton, 0.5 * (low + high))
    following = tl.where(surplus == lack, shift, following)
    close = inside & (tl.abs(following - shift) <= LAST_STEP)
    return following, low, high, (following != shift) & (close == 0)
