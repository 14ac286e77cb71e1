"""Suites that measure the same quantity of several providers at many sizes: cases, points, and how they are run."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from bench.command_line import count, ending
from bench.harness import Arguments, Recorder, device_argument, environment, quantiles
from bench.ops_timing import Timing
from bench.results import SECONDS, load, merged_points, write_csv

RECORDS, TABLE = "points.jsonl", "points.csv"
FILE_WIDTH = 132


class Point(NamedTuple):
    """What one provider took in one case.

    Attributes:
        provider: whose.
        unit: of the values, "s" or "bytes".
        values: seconds of all samples, or one count.
        per_round: samples of a round.
        control: whether no code of this library is in it.
        missing: why there are no values; empty where there are.
    """

    provider: str
    unit: str
    values: list[float]
    per_round: int = 1
    control: bool = False
    missing: str = ""

    @property
    def median(self) -> float:
        return quantiles(self.values)["q50"]

    @classmethod
    def timed(cls, provider: str, timing: Timing, control: bool = False) -> "Point":
        return cls(provider, SECONDS, timing.wall, timing.per_round, control)

    @classmethod
    def absent(cls, provider: str, reason: str, unit: str = SECONDS) -> "Point":
        return cls(provider, unit, [], missing=reason)


class Case(NamedTuple):
    """``measure`` gives the points of one case, all providers in interleaved rounds; ``key`` names it.

    "round", "recipe" and "what" tell apart cases whose values belong to the same series where the rest is the same.
    """

    key: dict[str, str | int | float]
    measure: Callable[[], Sequence[Point]]


Measured = list[tuple[dict[str, Any], Point]]  # key of the case, point


def parser(program: str, description: str | None, suite: str) -> Arguments:
    """The options that all of these suites have."""
    arguments = Arguments(program, description=description)
    arguments.add_argument("--device", type=device_argument, default="cpu", help="default: cpu")
    arguments.add_argument("--threads", type=count, default=2, metavar="N", help="of torch on the CPU (default: 2)")
    arguments.add_argument("--quick", action="store_true", help="smaller sizes, fewer repetitions")
    out = Path("out") / suite
    arguments.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"default: {out}")
    arguments.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return arguments


def run(
    program: str,
    suite: str,
    args: argparse.Namespace,
    make_cases: Callable[[Recorder, Console], Iterable[Case]],
    show: Callable[[Console, Measured], list[str]],
    facts: dict[str, Any] | None = None,
) -> int:
    """Measure all cases that an interrupted run has not, show them, and judge.

    Args:
        make_cases: the cases; may record what holds for all of them.
        show: prints the results and returns the missed targets, one sentence each.
        facts: beyond machine and versions, what distinguishes this run from others.

    Returns:
        Exit code: 0; 1 for a missed target with ``--check``; 2 where the results cannot be written.

    Raises:
        WrongResult: from a case.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    path = args.out / RECORDS
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        run_facts = {"suite": suite, **environment(args.device), "quick": args.quick, **(facts or {})}
        with Recorder(path, run_facts) as recorder, console.status("") as status:
            console.print(
                f"machine  {run_facts['cpu']}, {run_facts['threads']} threads; device {run_facts['device']}; torch "
                f"{run_facts['torch']}, vs_kernels {run_facts['commit']}, its CPU kernels: {run_facts['cpu_kernels']}",
                soft_wrap=True,
            )
            if recorder.resumed:
                console.print(f"resumed  {recorder.resumed}")
            for case in make_cases(recorder, console):
                if recorder.find("case", case=case.key):
                    continue
                status.update(", ".join(map(str, case.key.values())))
                for point in case.measure():
                    recorder.write("point", case=case.key, **point._asdict())
                recorder.write("case", case=case.key)
            recorder.finish()
            measured = _measured(recorder.records)
    except OSError as error:
        print(f"{program}: argument --out: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    missed = show(console, measured)
    write_csv(args.out / TABLE, load(path))
    return ending(program, console, (args.out / name for name in (RECORDS, TABLE)), missed, args.check)


def _measured(records: Sequence[dict[str, Any]]) -> Measured:
    points = merged_points(records)
    return [(point["case"], Point(**{name: point[name] for name in Point._fields})) for point in points]


def text(value: float, unit: str) -> str:
    """A median as people read it."""
    scales = {
        SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    }[unit]
    size, name = next((scale for scale in scales if value >= scale[0]), scales[-1])
    return f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"
