"""Which differences between two runs are beyond noise.

Times: a series is compared by the medians of its rounds. Where a competitor without code of this library was timed in
the same rounds, each round counts as a multiple of it, so that a slower phase of the machine cancels. A difference is
reported where both hold: the two-sided Mann-Whitney rank test rejects equality at ``ALPHA`` after Holm's correction for
all series together, and the medians differ by more than ``LEAST`` and, for series without such a competitor, by more
than ``DRIFT_MARGIN`` times what the controls of the suite moved between the two runs, which no commit can have caused.
Counts (bytes, launches, registers, answers) have no noise: any difference is one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import mannwhitneyu

from bench.harness import quantiles
from bench.results import SECONDS, Series, SuiteRun, series

ALPHA, LEAST, DRIFT_MARGIN = 0.01, 0.1, 2.0
FEWEST_ROUNDS = 5  # below, no rank test can tell anything
GOOD_WHEN_LARGER = ("share of answers",)

Key = tuple[str, str, str, str]


class Change(NamedTuple):
    """One series in both runs.

    Attributes:
        key: suite, case, provider, unit.
        before, after: medians in the unit.
        ratio: after over before; of times, relative to the competitor in the same rounds where there is one.
        p_value: of the rank test after Holm's correction; 0 for counts that differ, 1 where nothing can be told.
        least: relative difference of the medians that is taken for noise.
    """

    key: Key
    before: float
    after: float
    ratio: float
    p_value: float
    least: float

    @property
    def beyond_noise(self) -> bool:
        return self.p_value < ALPHA and abs(math.log(self.ratio)) > math.log1p(self.least)

    @property
    def worse(self) -> bool:
        grown = self.ratio > 1
        return self.beyond_noise and grown != (self.key[3] in GOOD_WHEN_LARGER)


class Comparison(NamedTuple):
    """Attributes:
    changes: all series that are in both runs.
    untested: times with too few rounds for a test.
    drift: by suite, the largest relative difference of a control between the two runs.
    """

    changes: list[Change]
    untested: int
    drift: dict[str, float]


def compare(before: Sequence[SuiteRun], after: Sequence[SuiteRun]) -> Comparison:
    """All series of two results against each other."""
    first, second = (_by_key(runs) for runs in (before, after))
    shared = [key for key in first if key in second]
    drift = _drift(first, second, shared)
    changes, times, p_values = [], [], []
    untested = 0
    for key in shared:
        a, b = first[key], second[key]
        if a.unit != SECONDS:
            same = a.values == b.values
            ratio = 1.0 if same else (b.median or 1e-9) / (a.median or 1e-9)
            changes.append(Change(key, a.median, b.median, ratio, 1.0 if same else 0.0, 0.0))
            continue
        if a.control:
            continue
        rounds_a, rounds_b, relative = _rounds(first, second, key)
        if min(len(rounds_a), len(rounds_b)) < FEWEST_ROUNDS:
            untested += 1
            continue
        ratio = quantiles(rounds_b)["q50"] / quantiles(rounds_a)["q50"]
        least = LEAST if relative else max(LEAST, DRIFT_MARGIN * drift.get(key[0], 0.0))
        p_values.append(float(mannwhitneyu(rounds_a, rounds_b, alternative="two-sided").pvalue))
        times.append(Change(key, a.median, b.median, ratio, 1.0, least))
    changes += [change._replace(p_value=p) for change, p in zip(times, holm(p_values), strict=True)]
    return Comparison(changes, untested, drift)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that hold for all tests together."""
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def _by_key(runs: Sequence[SuiteRun]) -> dict[Key, Series]:
    return {(one.suite, one.case, one.provider, one.unit): one for run in runs for one in series(run) if one.values}


def _drift(first: Mapping[Key, Series], second: Mapping[Key, Series], shared: Sequence[Key]) -> dict[str, float]:
    drift: dict[str, float] = {}
    for key in shared:
        if first[key].control:
            moved = math.exp(abs(math.log(second[key].median / first[key].median))) - 1
            drift[key[0]] = max(drift.get(key[0], 0.0), moved)
    return drift


def _rounds(
    first: Mapping[Key, Series], second: Mapping[Key, Series], key: Key
) -> tuple[list[float], list[float], bool]:
    """Medians of the rounds of both runs, as multiples of a control of the case where one has as many rounds."""
    ours = first[key].rounds, second[key].rounds
    for other, control in first.items():
        if control.control and other[:2] == key[:2] and other in second and _beside(key, other):
            theirs = control.rounds, second[other].rounds
            if [len(rounds) for rounds in theirs] == [len(rounds) for rounds in ours]:
                a, b = ([x / y for x, y in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True))
                return a, b, True
    return *ours, False


def _beside(key: Key, control: Key) -> bool:
    """Whether both were timed in the same rounds; in the suite ``ops`` ours is timed beside each competitor."""
    beside = key[2].partition(" beside ")[2]
    return not beside or beside == control[2]
