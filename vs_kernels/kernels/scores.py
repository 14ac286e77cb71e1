"""Scores on the device: keys that order them, and the sigmoid of a logit without cancellation."""

import triton
import triton.language as tl

MIN_KEY = tl.constexpr(-(2**31))
LARGEST = tl.constexpr(3.4028234663852886e38)  # the largest float32


@triton.jit
def score_key(score):
    """int32 that orders scores as the selection does: NaN below every number, -0 equal to +0.

    In integers throughout, so that no floating-point rewriting by a compiler can change it.
    """
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(bits == MIN_KEY, 0, bits)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, MIN_KEY, key)


@triton.jit
def finite_score(key):
    """The score of a key; NaN and -Inf as the smallest float32, +Inf as the largest."""
    score = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    score = tl.where(key == MIN_KEY, -LARGEST, score)
    return tl.minimum(tl.maximum(score, -LARGEST), LARGEST)


@triton.jit
def is_finite(key):
    """Whether the score of a key is; those of NaN and -Inf are below all others."""
    return (key >= -0x7F800000) & (key < 0x7F800000)


@triton.jit
def sigmoid(x):
    """sigmoid(x), the smaller of it and its complement with all its digits, and exp(-|x|)."""
    exp = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + exp)
    small = exp * large
    return tl.where(x < 0.0, small, large), small, exp


@triton.jit
def softplus(x, exp):
    """log(1 + exp(x)) from exp(-|x|)."""
    # log(1 + e) = 2 atanh(w), a polynomial in w^2 on [0, 1/9]: log(1 + e) itself loses the digits of a small e.
    w = exp / (2.0 + exp)
    y = w * w
    q = 2.815777957e-1
    q = q * y + 2.796515822e-1
    q = q * y + 4.002459645e-1
    q = q * y + 6.666632295e-1
    q = q * y + 2.0
    return w * q + tl.maximum(x, 0.0)
