"""What every suite shares: facts about the machine, a clock, interleaved rounds, quantiles, records that resume."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

import vs_kernels
from vs_kernels.library import cpu_isa

ROOT = Path(__file__).resolve().parents[1]

Case = TypeVar("Case")
Result = TypeVar("Result")


class Arguments(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def device_argument(name: str) -> torch.device:
    """A device of this machine, or the error that argparse shows."""
    here = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        here += [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in [*here, "cpu:0"]:
        raise argparse.ArgumentTypeError(f"no device {name!r} on this machine, expected one of: {', '.join(here)}")
    return device


def environment(device: torch.device) -> dict[str, str | int | float]:
    """The machine and the versions that a result depends on; memory in GiB."""
    facts: dict[str, str | int | float] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vs_kernels": vs_kernels.__version__,
        "cpu_kernels": f"C++ ({cpu_isa()})" if cpu_isa() else "PyTorch",
        "commit": _commit(),
        "source": _source_digest(),
    }
    try:
        facts["transformers"] = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        facts["transformers"] = "not installed"
    return facts


def _commit() -> str:
    """What git calls the state of this checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def _source_digest() -> str:
    """A digest of the library, compiled parts included, and of the benchmarks."""
    digest = hashlib.sha256()
    for folder in (Path(vs_kernels.__file__).parent, Path(__file__).parent):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.so")]):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Largest memory so far, in bytes: "resident" in this process and, on an accelerator, "allocated" there."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type != "cpu":
        peak["allocated"] = torch.accelerator.max_memory_allocated(device)
    return peak


def peak_during(device: torch.device, call: Callable[[], Result]) -> tuple[Result, int | None]:
    """The result of a call, and the most memory that was in use meanwhile: resident in this process, or allocated on
    an accelerator, in bytes; None where the system does not tell."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return call(), torch.accelerator.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    except OSError:
        return call(), None
    result = call()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, int(status["VmHWM"].split()[0]) * 1024


def extra_memory(device: torch.device, call: Callable[[], object]) -> int:
    """Most bytes that an accelerator allocated during a call, its results among them, beyond what was in use before."""
    before = torch.accelerator.memory_allocated(device)
    _, peak = peak_during(device, call)
    return (peak or before) - before


class Seconds(NamedTuple):
    """A duration in seconds: on the wall, and of CPU time summed over this process's threads."""

    wall: float
    process: float


class Mark(NamedTuple):
    """A point in time; ``event`` is its place in an accelerator's queue."""

    wall: float
    process: float
    event: torch.Event | None


class Clock:
    """Marks points in a run on ``device`` and tells the time between them.

    An accelerator is timed by events in its queue, so that marks inside a run do not make the host wait for it.
    Call :meth:`synchronize` before the first mark of a run and after the last.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> Mark:
        event = None
        if self.device.type != "cpu":
            event = torch.Event(self.device, enable_timing=True)
            event.record()
        return Mark(time.perf_counter(), time.process_time(), event)

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def between(self, start: Mark, end: Mark) -> Seconds:
        """Time from one mark to another; on an accelerator, valid after :meth:`synchronize`."""
        wall = start.event.elapsed_time(end.event) / 1e3 if start.event and end.event else end.wall - start.wall
        return Seconds(wall, end.process - start.process)


def interleaved(cases: Mapping[Case, Callable[[], Result]], rounds: int) -> Iterator[tuple[int, Case, Result]]:
    """Run every case once a round and yield (round from 1, case, result).

    A slow phase of the machine then falls on all cases alike. Every second round goes backwards, so that none
    always follows the same other one.
    """
    for number in range(1, rounds + 1):
        for case in list(cases)[:: 1 if number % 2 else -1]:
            yield number, case, cases[case]()


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The 20 %, 50 % and 80 % quantiles, interpolated between the values."""
    if len(values) == 1:
        return dict.fromkeys(("q20", "q50", "q80"), float(values[0]))
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"q20": tenths[1], "q50": tenths[4], "q80": tenths[7]}


class Recorder:
    """Writes JSON lines, each on disk before the next measurement starts, and takes up a run that was interrupted.

    Args:
        path: the file.
        facts: of the run: machine, versions, options. They are written first. Where ``path`` holds a run with the
            same facts that did not reach its end, its records stay and :meth:`find` gives them. None: a new file.

    Attributes:
        records: all that the file holds.
        resumed: a sentence where a run was taken up; else empty.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any] | None = None):
        self.path = path
        self.records = [] if facts is None else _unfinished(path, facts)
        self.resumed = f"took up {len(self.records) - 1} records of an interrupted run" if self.records else ""
        # By way of a second file: a machine that stops here must not lose what was measured.
        again = path.with_name(path.name + ".part")
        again.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        again.replace(path)
        self._file = path.open("a")
        if facts is not None and not self.records:
            self.write("run", **facts)

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Put a record on disk and return it as it will be read."""
        line = json.dumps({"record": kind, **fields})
        self._file.write(line + "\n")
        self._file.flush()
        self.records.append(json.loads(line))
        return self.records[-1]

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """The record of this kind with these fields, written now or before an interruption; None: there is none."""
        wanted = _as_read({"record": kind, **fields})
        for record in self.records:
            if all(record.get(name) == value for name, value in wanted.items()):
                return record
        return None

    def finish(self) -> None:
        """Note that the run is whole: the next one with the same facts begins anew."""
        self.write("end")

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off while it was written is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not a record: {error}") from None
    return records


def _unfinished(path: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = read_records(path)
    if not records or records[-1]["record"] == "end" or records[0] != _as_read({"record": "run", **facts}):
        return []
    return records


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(record))
