"""Memory that a call takes, exact to the byte: what PyTorch's allocators hand out and take back."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


class Memory(NamedTuple):
    """Bytes beyond what was allocated before the call: at the ``peak``, and still ``kept`` when it returned."""

    peak: int
    kept: int


def allocated_by(call: Callable[[], Result], device: torch.device) -> tuple[Result, Memory]:
    """The result of a call, and the memory that it took; the result itself is a part of both numbers."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        before = torch.accelerator.memory_allocated(device)
        torch.accelerator.reset_peak_memory_stats(device)
        result = call()
        torch.accelerator.synchronize(device)
        peak = torch.accelerator.max_memory_allocated(device) - before
        return result, Memory(peak, torch.accelerator.memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    # Blocks that were there before the call and are freed in it do not count.
    sizes: dict[int, int] = {}
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size >= 0:
            sizes[address] = size
            now += size
        else:
            now -= sizes.pop(address, 0)
        peak = max(peak, now)
    return result, Memory(peak, now)
