"""How a quantity grows: fitted exponents, and where one curve crosses another."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """``quantity = factor * size ** exponent``, least squares of the logarithms; ``error`` of the exponent."""

    exponent: float
    error: float
    factor: float

    def __call__(self, size: float) -> float:
        return self.factor * size**self.exponent


def fit(curve: Mapping[int, float]) -> Fit | None:
    """The power law of a curve of at least three points; None for fewer."""
    if len(curve) < 3:
        return None
    x, y = np.log(list(curve)), np.log(list(curve.values()))
    (exponent, offset), residuals, *_ = np.polyfit(x, y, 1, full=True)
    spread = float(residuals[0]) if len(residuals) else 0.0
    error = math.sqrt(spread / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    return Fit(float(exponent), error, math.exp(offset))


def crossing(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """In words, from which size on ours is faster, read between the measured points on logarithmic axes."""
    sizes = sorted(set(ours) & set(theirs))
    if not sizes:
        return "-"
    gains = [math.log(theirs[size] / ours[size]) for size in sizes]
    if gains[-1] <= 0:
        return f"not up to {sizes[-1]:,}"
    last_behind = max((number for number, gain in enumerate(gains) if gain <= 0), default=None)
    if last_behind is None:
        return f"from {sizes[0]:,} or less"
    low, high = last_behind, last_behind + 1
    share = -gains[low] / (gains[high] - gains[low])
    return f"from {round(sizes[low] * (sizes[high] / sizes[low]) ** share):,}"
