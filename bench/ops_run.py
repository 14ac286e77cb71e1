"""One row of the suite ``ops``: its results verified, then its calls timed."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

import vs_kernels
from bench import device_timing
from bench.harness import Seconds, extra_memory
from bench.heap import PREPARED_FRESH_BYTES, TIMED_FRESH_BYTES, take_fresh_from
from bench.ops_cases import REACHED, Case
from bench.ops_small import MOST_MICROSECONDS, SmallCall, pytorch_call
from bench.ops_timing import Call, Stream, Timer, Timing, fresh_memory, ratio
from bench.ops_verify import Verify, WrongResult
from bench.ops_workload import Workload
from bench.providers import Missing
from vs_kernels.verify import worst_error

CONTROL = "pytorch"
SMALL_PROVIDERS = "public", "smallest", CONTROL


class Row(NamedTuple):
    """One comparison as measured.

    Attributes:
        operator, shape, against: what was compared.
        ours, theirs: times of one call, in quiet rounds where it works in the caches; theirs is None without a
            competitor.
        figure: their time over ours ("x"), or overhead ("µs"); None without a competitor.
        process_figure: the same of CPU time, which other programs disturb less.
        target: least ratio, or most overhead; None: shown, not judged.
        unit: of the figures and the target, "x" or "µs".
        bandwidth: bytes that ours must move over its time, as a share of the measured read bandwidth; None where
            it works in the caches.
        cores: that the machine gave meanwhile.
        note: what a reader must know of the competitor, empty as a rule.
        moved, flops, their_moved, their_flops, fresh: work of a call, as :class:`bench.ops_cases.Pair` has it.
        least: times of nothing but reading as many bytes, and writing to fresh memory what ours writes there; None
            without a target for them, and where ours works in the caches.
        our_graph, their_graph: times of a call replayed as a CUDA graph; None elsewhere, or where none can be captured.
        our_peak, their_peak: bytes that a call allocates on a CUDA device at most; None elsewhere.
    """

    operator: str
    shape: str
    against: str
    ours: Timing
    theirs: Timing | None
    figure: float | None
    process_figure: float | None
    target: float | None
    unit: str
    bandwidth: float | None
    cores: float
    note: str
    moved: int | None = None
    flops: int | None = None
    their_moved: int | None = None
    their_flops: int | None = None
    our_graph: Timing | None = None
    their_graph: Timing | None = None
    our_peak: int | None = None
    their_peak: int | None = None
    fresh: int = 0
    least: Timing | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without one. A target that could not be measured is not met."""
        if self.target is None:
            return None
        if self.figure is None:
            return False
        return self.figure >= self.target if self.unit == "x" else self.figure <= self.target

    @property
    def most(self) -> float | None:
        """The ratio that would be left if ours took the time ``least``, where that is less than the target asks.

        None where it is not, and where the competitor takes hardly longer itself: then the caches are faster than that.
        """
        if self.target is None or self.least is None or self.theirs is None:
            return None
        most, _ = ratio(self.theirs, self.least)
        return most if REACHED * most > 1 and most < self.target else None

    @property
    def at_limit(self) -> bool:
        """Whether ours misses a target that this machine does not allow, but reaches what it does."""
        return self.met is False and self.most is not None and self.figure >= REACHED * self.most


def measure(case: Case, work: Workload, timer: Timer) -> Row:
    """Raises :class:`WrongResult` where a provider's result is not right."""
    take_fresh_from(PREPARED_FRESH_BYTES)
    pair = case.prepare(work)
    notes = [case.note] if case.note else []
    providers = {"ours": "vs_kernels", "theirs": case.against}
    names = {who: f"{case.operator}, {case.shape}: {provider}" for who, provider in providers.items()}
    verifies = {"ours": pair.verify, "theirs": pair.verify_theirs or pair.verify}
    first = {"ours": _verified(pair.ours, pair.verify, timer, names["ours"])}
    calls = {"ours": pair.ours}
    if pair.theirs:
        try:
            if case.compiled:
                pair.theirs()
            first["theirs"] = _verified(pair.theirs, verifies["theirs"], timer, names["theirs"])
            calls["theirs"] = pair.theirs
        except (Missing, TorchDynamoException) as error:
            notes.append(f"missing: {str(error).partition(chr(10))[0]}")
    peaks: dict[str, int] = {}
    if timer.device.type == "cuda":
        peaks = {who: extra_memory(timer.device, call) for who, call in calls.items()}
        for who, call in list(calls.items()):
            found, missing = device_timing.ways(call)
            notes += [f"{providers[who]} {reason}" for reason in missing.values()]
            for way, replay in found.items():
                if way:
                    first[who + way] = _verified(replay, verifies[who], timer, names[who] + way)
                    calls[who + way] = replay
    if pair.moved and "theirs" in calls and case.target is not None:
        calls["least"] = partial(_move, work.stream, pair.moved - pair.fresh, pair.fresh)
        first["least"] = timer.first(calls["least"])[1]
    if pair.moved is None and "theirs" in calls:
        calls = {CONTROL: pytorch_call(timer.device), **calls}
        first[CONTROL] = timer.first(calls[CONTROL])[1]
    take_fresh_from(TIMED_FRESH_BYTES)
    timings, cores = timer.compare(calls, first)
    if CONTROL in timings:  # what works in the caches is as fast as the core: see measure_small
        quiet = timings[CONTROL].fastest_rounds()
        timings = {who: timing.of_rounds(quiet) for who, timing in timings.items()}
    ours, theirs = timings["ours"], timings.get("theirs")
    figure, process_figure = ratio(theirs, ours) if theirs else (None, None)
    return Row(
        case.operator,
        case.shape,
        case.against,
        ours,
        theirs,
        figure=figure,
        process_figure=process_figure,
        target=case.target,
        unit="x",
        bandwidth=pair.moved and pair.moved / ours.median / work.stream.bandwidth,
        cores=cores,
        note="; ".join(notes) or _few_calls(case, theirs),
        moved=pair.moved,
        flops=pair.flops,
        their_moved=pair.their_moved,
        their_flops=pair.their_flops,
        our_graph=timings.get("ours, graph"),
        their_graph=timings.get("theirs, graph"),
        our_peak=peaks.get("ours"),
        their_peak=peaks.get("theirs"),
        fresh=pair.fresh,
        least=timings.get("least"),
    )


def _verified(call: Call, verify: Verify, timer: Timer, who: str) -> Seconds:
    """The time of the call that was verified."""
    results, time = timer.first(call)
    try:
        verify(results)
    except WrongResult as error:
        raise WrongResult(f"{who}: {error}") from None
    return time


def _move(stream: Stream, read: int, fresh: int) -> tuple[Tensor, ...]:
    return (stream.read(read), *([fresh_memory(fresh)] if fresh else []))


def _few_calls(case: Case, theirs: Timing | None) -> str:
    if theirs is None or len(theirs.wall) > 2:
        return ""
    return f"{case.against} takes {theirs.median:.1f} s a call: timed {('once', 'twice')[len(theirs.wall) - 1]}"


def measure_small(calls: Sequence[SmallCall], timer: Timer, judged: bool = True) -> list[Row]:
    """The overhead of public calls, against the CPU's target if ``judged``; all of them in the same rounds.

    A core that somebody else's thread shares is slower by two thirds, for a tenth of a second or for minutes, and shows
    as busy with ours alone. PyTorch's call next to ours tells: what counts are the rounds in which that was fastest.

    Raises:
        WrongResult: a result is not right.
    """
    timed: dict[str, Call] = {}
    for small in calls:
        error, right = worst_error(vs_kernels, small.operator, small.inputs)
        if not right:
            raise WrongResult(f"{small.operator}, {small.shape}: vs_kernels: {error}")
        for who, call in zip(SMALL_PROVIDERS, (small.public, small.smallest, small.pytorch), strict=True):
            timed[f"{small.operator} {who}"] = call
    first = {name: timer.first(call)[1] for name, call in timed.items()}
    timings, cores = timer.compare(timed, first, longer=len(calls))
    return [
        _small_row(small, [timings[f"{small.operator} {who}"] for who in SMALL_PROVIDERS], cores, judged)
        for small in calls
    ]


def _small_row(small: SmallCall, timings: Sequence[Timing], cores: float, judged: bool) -> Row:
    *_, every_pytorch = timings
    quiet = every_pytorch.fastest_rounds()
    public, smallest, pytorch = (timing.of_rounds(quiet) for timing in timings)
    return Row(
        small.operator,
        small.shape,
        "one token",
        public,
        smallest,
        figure=smallest.median * 1e6,
        process_figure=smallest.process_median * 1e6,
        target=MOST_MICROSECONDS if judged else None,
        unit="µs",
        bandwidth=None,
        cores=cores,
        note=f"one row by torch.ops.aten.index_select took {pytorch.median * 1e6:.1f} µs meanwhile, in all rounds "
        f"{every_pytorch.median * 1e6:.1f} µs",
    )
