"""Which differences between two results are beyond noise.

Times: a process can be slower than another of the same code for as long as it lives, by where its memory came to lie.
So the process is what is counted: a result has several runs of a suite, each a process of its own, and of every run the
median of a series. They are compared less what the suite's competitors, without code of this library, moved on average
and, where one of them was timed in the same case, as multiples of it: a change of the library moves both, a phase of
the machine that is slower for some work the first, a disturbed competitor the second. A difference is reported where
all of these hold:

- Every run of one result was slower than every run of the other, and Student's t test of the logarithms rejects that
  they are equal, in both: noise from process to process.
- The medians moved farther than those of the competitors did between the two results, which no commit can have caused:
  noise from hour to hour, which all runs of a result share. See :func:`chance`.
- Both moved the same way, by more than ``LEAST``.

The larger of the p values counts, after Holm's correction for all series together, at ``ALPHA``. With fewer than
``FEWEST_RUNS`` runs of a suite, or fewer than two competitors in it, nothing can be told of times. Counts (bytes,
launches, registers, answers) have no noise: any difference is one.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t, ttest_ind

from bench.harness import quantiles
from bench.results import SECONDS, Series, SuiteRun, series

ALPHA, LEAST = 0.01, 0.1
# Where each process is slow or fast by the toss of a coin, one in 500 pairs of results has all slow in one of them.
FEWEST_RUNS = 5
GOOD_WHEN_LARGER = ("share of answers", "as promised")

Key = tuple[str, str, str, str]


class Change(NamedTuple):
    """One series in both runs.

    Attributes:
        key: suite, case, provider, unit.
        before, after: medians of the runs' medians, in the unit.
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
    changes: all series that are in both results.
    untested: times of too few runs for a test, or without competitors in their suite.
    drift: by suite, how far the competitors moved between the two results: logarithms, one for each.
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
        if key[3] != SECONDS:
            same = all(one.values == a[0].values for one in (*a, *b))
            before_after = _median(_medians(a)), _median(_medians(b))
            ratio = 1.0 if same else (before_after[1] or 1e-9) / (before_after[0] or 1e-9)
            changes.append(Change(key, *before_after, ratio, 1.0 if same else 0.0))
            continue
        if a[0].control:
            continue
        if min(len(a), len(b)) < FEWEST_RUNS or len(drift.get(key[0], ())) < 2:
            untested += 1
            continue
        old, new = _medians(a), _medians(b)
        machine = math.exp(statistics.fmean(drift[key[0]]))
        pairs = [(old, [value / machine for value in new])]
        if relative := _beside_control(first, second, key):
            pairs.append(relative)
        moves = [math.log(_median(after) / _median(before)) for before, after in pairs]
        agree = all(move > 0 for move in moves) or all(move < 0 for move in moves)
        ratio = math.exp(min(moves, key=abs)) if agree else 1.0
        of_chance = chance(math.log(_median(new) / _median(old)), drift[key[0]])
        p_values.append(max(of_chance, *(of_processes(*pair) for pair in pairs)))
        times.append(Change(key, _median(old), _median(new), ratio, 1.0))
    changes += [change._replace(p_value=p) for change, p in zip(times, holm(p_values), strict=True)]
    return Comparison(changes, untested, drift)


def of_processes(before: Sequence[float], after: Sequence[float]) -> float:
    """The p value of equal times of the processes of two results; 1 where those of neither are all the larger ones."""
    if max(before) >= min(after) and max(after) >= min(before):
        return 1.0
    logs = ([math.log(value) for value in values] for values in (before, after))
    return float(ttest_ind(*logs).pvalue)


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


Result = dict[Key, list[Series]]  # of every series, one of each run


def _by_key(runs: Sequence[SuiteRun]) -> Result:
    found: Result = {}
    for run in runs:
        for one in series(run):
            if one.values:
                found.setdefault((one.suite, one.case, one.provider, one.unit), []).append(one)
    return found


def _medians(runs: Sequence[Series]) -> list[float]:
    return [one.median for one in runs]


def _median(values: Sequence[float]) -> float:
    return quantiles(values)["q50"]


def _drift(first: Result, second: Result, shared: Sequence[Key]) -> dict[str, list[float]]:
    moves: dict[str, list[float]] = {}
    for key in shared:
        if first[key][0].control and key[3] == SECONDS:
            before, after = (_median(_medians(runs[key])) for runs in (first, second))
            moves.setdefault(key[0], []).append(math.log(after / before))
    return moves


def _beside_control(first: Result, second: Result, key: Key) -> tuple[list[float], list[float]] | None:
    """The runs of both results as multiples of a control that was timed in them; None where there is none."""
    for other, control in first.items():
        if control[0].control and other[:2] == key[:2] and other in second and _beside(key, other):
            theirs = _medians(control), _medians(second[other])
            ours = _medians(first[key]), _medians(second[key])
            if [len(runs) for runs in theirs] == [len(runs) for runs in ours]:
                before, after = ([x / y for x, y in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True))
                return before, after
    return None


def _beside(key: Key, control: Key) -> bool:
    """Whether both were timed in the same rounds; in the suite ``ops`` ours is timed beside each competitor."""
    beside = key[2].partition(" beside ")[2]
    return not beside or beside == control[2]
