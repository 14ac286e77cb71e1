"""Times of calls on a CUDA device: by events in its queue, with a warm and a cold L2 cache, and as a replayed graph."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from bench.harness import interleaved
from bench.ops_timing import Call, Timing

ROUNDS, CALLS, WARM_UP = 10, 20, 3  # calls of one round
FLUSHED_BYTES = 2**28  # larger than the L2 cache of any GPU


class Replay:
    """A call captured as a CUDA graph: a replay is one launch, without the work of the host, and gives the results.

    It is captured on the current stream where that is not the default one, which no graph can hold: a backward runs on
    the stream of its forward.

    Raises:
        RuntimeError: the call waits for the device, or does something else that cannot be captured.
    """

    def __init__(self, call: Call):
        current = torch.cuda.current_stream()
        side = torch.cuda.Stream() if current == torch.cuda.default_stream() else current
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):
            self._results = call()  # kept: the graph writes into them

    def __call__(self) -> Any:
        self._graph.replay()
        return self._results


class CacheFlush:
    """Writes more than the L2 cache holds, so that the next call finds nothing of its inputs there."""

    def __init__(self) -> None:
        self._block = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self) -> None:
        self._block.zero_()


def ways(call: Call) -> tuple[dict[str, Call], dict[str, str]]:
    """How a call can be run, by name, and what cannot, with the reason."""
    found: dict[str, Call] = {"": call}
    missing: dict[str, str] = {}
    try:
        found[", graph"] = Replay(call)
    except RuntimeError as error:
        torch.cuda.synchronize()
        missing[", graph"] = f"cannot be captured as a CUDA graph: {str(error).partition(chr(10))[0]}"
    return found, missing


def timed(calls: Mapping[str, Call], cold: bool) -> dict[str, Timing]:
    """Seconds of every call between two events around it, in interleaved rounds.

    Args:
        calls: by name.
        cold: empty the L2 cache before every call, outside of what is timed.
    """
    flush = CacheFlush() if cold else None
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    timings = {name: Timing([], [], 1, CALLS) for name in calls}
    rounds = {name: partial(_round, call, flush) for name, call in calls.items()}
    for _, name, seconds in interleaved(rounds, ROUNDS):
        timings[name].wall.extend(seconds)
    return timings


def _round(call: Call, flush: CacheFlush | None) -> list[float]:
    """One wait for the device at the end, so that the host stays ahead of it."""
    pairs = []
    for _ in range(CALLS):
        if flush:
            flush()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]
