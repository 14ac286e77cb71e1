"""Which differences between two runs are beyond noise.

Times: a series is compared by the medians of its rounds, as they are and, where a competitor without code of this
library was timed in the same case, as multiples of it: a change of the library moves both, a slower phase of the
machine the first, a disturbed competitor the second. A difference is reported where all of these hold:

- The two-sided Mann-Whitney rank test rejects equality of the rounds, of both: noise from round to round.
- The medians moved farther than those of the suite's competitors did between the two runs, which no commit can have
  caused: noise from run to run, of which the rounds of one run know nothing. See :func:`chance`.
- Both moved the same way, by more than ``LEAST``, the first after what competitors moved on average is taken off.

The larger of the p values counts, after Holm's correction for all series together, at ``ALPHA``. Where a suite has
fewer than two competitors, nothing can be told. Counts (bytes, launches, registers, answers) have no noise: any
difference is one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import mannwhitneyu, t

from bench.harness import quantiles
from bench.results import SECONDS, Series, SuiteRun, series

ALPHA, LEAST = 0.01, 0.1
FEWEST_ROUNDS = 5  # below, no rank test can tell anything
GOOD_WHEN_LARGER = ("share of answers", "as promised")

Key = tuple[str, str, str, str]


class Change(NamedTuple):
    """One series in both runs.

    Attributes:
        key: suite, case, provider, unit.
        before, after: medians in the unit.
        ratio: after over before; of times, less what the competitors moved on average, or as multiples of a competitor,
            whichever changed less; 1 where those contradict each other.
        p_value: after Holm's correction; 0 for counts that differ, 1 where nothing can be told.
    """

    key: Key
    before: float
    after: float
    ratio: float
    p_value: float

    @property
    def beyond_noise(self) -> bool:
        least = math.log1p(LEAST) if self.key[3] == SECONDS else 0.0
        return self.p_value < ALPHA and abs(math.log(self.ratio)) > least

    @property
    def worse(self) -> bool:
        grown = self.ratio > 1
        return self.beyond_noise and grown != (self.key[3] in GOOD_WHEN_LARGER)


class Comparison(NamedTuple):
    """Attributes:
    changes: all series that are in both runs.
    untested: times with too few rounds for a test, or without a competitor in their suite.
    drift: by suite, how far the competitors moved between the two runs: logarithms, one for each.
    """

    changes: list[Change]
    untested: int
    drift: dict[str, list[float]]


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
            changes.append(Change(key, a.median, b.median, ratio, 1.0 if same else 0.0))
            continue
        if a.control:
            continue
        pairs = [(a.rounds, b.rounds)]
        if relative := _beside_control(first, second, key):
            pairs.append(relative)
        if min(len(rounds) for pair in pairs for rounds in pair) < FEWEST_ROUNDS or len(drift.get(key[0], ())) < 2:
            untested += 1
            continue
        moves = [math.log(quantiles(after)["q50"] / quantiles(before)["q50"]) for before, after in pairs]
        of_chance = chance(moves[0], drift[key[0]])
        moves[0] -= statistics.fmean(drift[key[0]])
        agree = all(move > 0 for move in moves) or all(move < 0 for move in moves)
        ratio = math.exp(min(moves, key=abs)) if agree else 1.0
        of_rounds = max(float(mannwhitneyu(*pair, alternative="two-sided").pvalue) for pair in pairs)
        p_values.append(max(of_rounds, of_chance))
        times.append(Change(key, a.median, b.median, ratio, 1.0))
    changes += [change._replace(p_value=p) for change, p in zip(times, holm(p_values), strict=True)]
    return Comparison(changes, untested, drift)


def chance(move: float, null: Sequence[float]) -> float:
    """The p value of a move, a logarithm, among at least two of which nothing but noise is known.

    If it is one of them, all normal with an unknown mean, then its distance from their mean over their standard
    deviation times sqrt(1 + 1/m) has Student's t distribution with m - 1 degrees of freedom.
    """
    scale = statistics.stdev(null) * math.sqrt(1 + 1 / len(null))
    distance = abs(move - statistics.fmean(null))
    return float(2 * t.sf(distance / scale, len(null) - 1)) if scale else float(not distance)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that hold for all tests together."""
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def _by_key(runs: Sequence[SuiteRun]) -> dict[Key, Series]:
    return {(one.suite, one.case, one.provider, one.unit): one for run in runs for one in series(run) if one.values}


def _drift(first: Mapping[Key, Series], second: Mapping[Key, Series], shared: Sequence[Key]) -> dict[str, list[float]]:
    moves: dict[str, list[float]] = {}
    for key in shared:
        if first[key].control and first[key].unit == SECONDS:
            moves.setdefault(key[0], []).append(math.log(second[key].median / first[key].median))
    return moves


def _beside_control(
    first: Mapping[Key, Series], second: Mapping[Key, Series], key: Key
) -> tuple[list[float], list[float]] | None:
    """The rounds of both runs as multiples of a control that was timed in them; None where there is none."""
    ours = first[key].rounds, second[key].rounds
    for other, control in first.items():
        if control.control and other[:2] == key[:2] and other in second and _beside(key, other):
            theirs = control.rounds, second[other].rounds
            if [len(rounds) for rounds in theirs] == [len(rounds) for rounds in ours]:
                a, b = ([x / y for x, y in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True))
                return a, b
    return None


def _beside(key: Key, control: Key) -> bool:
    """Whether both were timed in the same rounds; in the suite ``ops`` ours is timed beside each competitor."""
    beside = key[2].partition(" beside ")[2]
    return not beside or beside == control[2]
