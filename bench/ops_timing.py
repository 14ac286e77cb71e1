"""Times of calls between microseconds and a minute, interleaved, and how much of the machine they got."""

import contextlib
import math
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.harness import Clock, Seconds, interleaved, quantiles

Call = Callable[[], Any]

ROUNDS = 30
MOST_SAMPLES = 20  # of one provider in one round
SAMPLE_SECONDS = 2e-4  # a sample repeats shorter calls until it is this long, against which the clock is free
SLOW_SECONDS = 0.2  # a call longer than this needs no second one to be estimated
THRICE_SECONDS = 0.5  # a call shorter than this is timed at least three times
ONCE_SECONDS = 3.0  # a call longer than this is timed once: the call that was verified
QUIET_SHARE = 0.25  # of the rounds
PROBE_SIZE = 512  # of a matrix product that keeps all threads busy for some milliseconds


class Timing(NamedTuple):
    """Seconds of one call: one entry for every sample, each the mean over ``batch`` calls, ``per_round`` a round."""

    wall: list[float]
    process: list[float]
    batch: int
    per_round: int = 1

    @property
    def median(self) -> float:
        return quantiles(self.wall)["q50"]

    @property
    def process_median(self) -> float:
        return quantiles(self.process)["q50"]

    @property
    def rounds(self) -> int:
        return len(self.wall) // self.per_round

    def of_rounds(self, rounds: Sequence[int]) -> "Timing":
        """The samples of some rounds, counted from 0."""
        chosen = [round * self.per_round + sample for round in rounds for sample in range(self.per_round)]
        return self._replace(wall=[self.wall[i] for i in chosen], process=[self.process[i] for i in chosen])

    def fastest_rounds(self) -> list[int]:
        """A quarter of the rounds, counted from 0, by their medians."""
        ordered = sorted(range(self.rounds), key=lambda number: self.of_rounds([number]).median)
        return sorted(ordered[: math.ceil(QUIET_SHARE * len(ordered))])

    def record(self) -> dict[str, Any]:
        """Quantiles and samples as they are written down; seconds."""
        return {
            "wall": quantiles(self.wall),
            "process": quantiles(self.process),
            "calls_per_sample": self.batch,
            "samples_per_round": self.per_round,
            "wall_s": self.wall,
            "process_s": self.process,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Timing":
        return cls(record["wall_s"], record["process_s"], record["calls_per_sample"], record["samples_per_round"])


def ratio(theirs: Timing, ours: Timing) -> tuple[float, float]:
    """How many times as long theirs took, in wall and in process time: the median of the ratios of the rounds.

    The speed of a machine with neighbours changes by half within seconds, and within a round it is the same for both.
    Where one of them was too slow for rounds, the ratio of the medians.
    """
    if theirs.rounds != ours.rounds:
        return theirs.median / ours.median, theirs.process_median / ours.process_median
    pairs = [(theirs.of_rounds([number]), ours.of_rounds([number])) for number in range(ours.rounds)]
    wall = quantiles([one.median / other.median for one, other in pairs])
    process = quantiles([one.process_median / other.process_median for one, other in pairs])
    return wall["q50"], process["q50"]


class Timer:
    """Times providers against each other on one device.

    Args:
        device: of the calls.
        seconds: wall time that the calls of one comparison may take together, where they are not slower than that.
    """

    def __init__(self, device: torch.device, seconds: float):
        self.device = device
        self.seconds = seconds
        self._clock = Clock(device)
        self._probe = torch.ones(PROBE_SIZE, PROBE_SIZE)
        self._result: Any = None

    def first(self, call: Call) -> tuple[Any, Seconds]:
        """The result of a call, for verification, and its time, which counts where a second one would be too slow."""
        start = self._start()
        result = call()
        return result, self._since(start)

    def compare(
        self, calls: Mapping[str, Call], first: Mapping[str, Seconds], longer: int = 1
    ) -> tuple[dict[str, Timing], float]:
        """Times of ``calls`` from interleaved rounds, and the cores that the machine gave meanwhile.

        Args:
            calls: providers by name.
            first: how long the first call of each took; warm-up, but for a very slow one its only sample.
            longer: so many times the rounds and the seconds of a comparison.
        """
        timings = {name: Timing([time.wall], [time.process], 1) for name, time in first.items()}
        repeated = {name: call for name, call in calls.items() if first[name].wall < ONCE_SECONDS}
        cores = [self._cores()]
        if repeated:
            typical = {
                name: first[name].wall if first[name].wall > SLOW_SECONDS else self._sample(call, 3).wall
                for name, call in repeated.items()
            }
            share = longer * self.seconds / len(repeated)
            slowest = max(typical.values())
            rounds = max(3 if slowest < THRICE_SECONDS else 1, min(longer * ROUNDS, int(share / slowest)))
            blocks = {}
            for name, call in repeated.items():
                batch = math.ceil(SAMPLE_SECONDS / typical[name])
                samples = max(1, min(MOST_SAMPLES, int(share / rounds / (batch * typical[name]))))
                timings[name] = Timing([], [], batch, samples)
                blocks[name] = partial(self._samples, call, samples, batch)
            for number, name, block in interleaved(blocks, rounds):
                timings[name].wall.extend(sample.wall for sample in block)
                timings[name].process.extend(sample.process for sample in block)
                if number == len(cores):
                    cores.append(self._cores())
            self._result = None
        return timings, quantiles(cores)["q50"]

    def _samples(self, call: Call, samples: int, batch: int) -> list[Seconds]:
        return [self._sample(call, batch) for _ in range(samples)]

    def _sample(self, call: Call, batch: int) -> Seconds:
        """Mean of one call over ``batch`` calls.

        A result lives until the next one is there, as where somebody uses it. If it were freed before, it would be
        the state of the allocator that decides which provider writes to the block that the caches still hold.
        """
        start = self._start()
        for _ in range(batch):
            self._result = call()
        wall, process = self._since(start)
        return Seconds(wall / batch, process / batch)

    def _start(self) -> Any:
        self._clock.synchronize()
        return self._clock.mark()

    def _since(self, start: Any) -> Seconds:
        end = self._clock.mark()
        self._clock.synchronize()
        return self._clock.between(start, end)

    def _cores(self) -> float:
        """CPU time over wall time of work that can use every thread: below their number, others had the rest."""
        wall, process = time.perf_counter(), time.process_time()
        self._probe @ self._probe
        return (time.process_time() - process) / (time.perf_counter() - wall)


def measured_matrix_rate(size: int, device: torch.device, timer: Timer, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a matrix product of ``size`` rows and columns, the fastest: a ceiling."""
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    calls = {"product": lambda: matrix @ matrix}
    timings, _ = timer.compare(calls, {"product": timer.first(calls["product"])[1]})
    return 2 * size**3 / min(timings["product"].wall)


def fresh_memory(size: int) -> torch.Tensor:
    """Ones in ``size`` bytes that the system hands out for it, in large pages where it has them, each written once."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.float32).fill_(1.0)


class Stream:
    """Reads a block of memory far beyond the caches, piece after piece, in the fastest of a few ways.

    Attributes:
        way: the fastest.
        bandwidth: bytes per second of it, read by the threads that torch uses, the median.
        most: the same of its fastest sample, a ceiling.
    """

    COLUMNS = 4096

    def __init__(self, size: int, device: torch.device, timer: Timer):
        self._block = torch.ones(max(1, size // (4 * self.COLUMNS)), self.COLUMNS, device=device)
        self._vector = torch.ones(self.COLUMNS, device=device)
        self._next = 0
        ways = {
            "torch.sum": lambda rows: rows.sum(),
            "torch.mv": lambda rows: (rows @ self._vector).sum(),
            "torch.sum of rows": lambda rows: rows.sum(dim=1).sum(),
        }
        calls = {name: partial(way, self._block) for name, way in ways.items()}
        first = {name: timer.first(call)[1] for name, call in calls.items()}
        timings, self.cores = timer.compare(calls, first)
        self.way = min(timings, key=lambda name: timings[name].median)
        self._read = ways[self.way]
        self.bandwidth = self._block.nbytes / timings[self.way].median
        self.most = self._block.nbytes / min(min(timing.wall) for timing in timings.values())

    def floats(self, size: int) -> int:
        """How many numbers a read of ``size`` bytes takes in: whole rows of the block, all of them at most."""
        return self._count(size) * self.COLUMNS

    def _count(self, size: int) -> int:
        return min(len(self._block), max(1, round(size / (4 * self.COLUMNS))))

    def read(self, size: int) -> torch.Tensor:
        """Read ``size`` bytes that no recent call has read; returns the number of float32 among them, counted."""
        count = self._count(size)
        if self._next + count > len(self._block):
            self._next = 0
        rows = self._block[self._next : self._next + count]
        self._next += count
        return self._read(rows)
