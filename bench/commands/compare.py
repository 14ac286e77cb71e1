"""Compare two results: which changes are beyond noise. Exit code 1 where something became worse.

Times need five runs of a suite in each result, every one a process of its own, as --processes 5 of a suite makes them.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench.harness import Arguments
from bench.results import SECONDS, load

PROGRAM = "python -m bench compare"
FILE_WIDTH = 132


def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 where something became worse beyond noise."""
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("before", type=Path, metavar="A", help="a directory of results, or one file of records")
    parser.add_argument("after", type=Path, metavar="B", help="the same of another commit, machine or setting")
    args = parser.parse_args(argv)
    try:
        before, after = load(args.before), load(args.after)
    except ValueError as error:
        parser.error(str(error))

    from bench.comparison import ALPHA, FEWEST_RUNS, LEAST, compare

    comparison = compare(before, after)
    if not comparison.changes and not comparison.untested:
        parser.error(f"{args.before} and {args.after} have no measurement in common")
    changed = sorted((c for c in comparison.changes if c.beyond_noise), key=lambda c: c.ratio, reverse=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    for name, runs in (("A", before), ("B", after)):
        commits = {f"{run.facts.get('commit', '?')} on {run.facts.get('device', '?')}" for run in runs}
        console.print(f"{name}  {', '.join(sorted(commits))}", soft_wrap=True, markup=False)
    if changed:
        table = Table(box=box.ROUNDED, header_style="bold")
        for column in ("suite", "case", "provider", "A", "B", "B / A", "p"):
            table.add_column(column, justify="left" if column in ("suite", "case", "provider") else "right")
        for change in changed:
            suite, case, provider, unit = change.key
            style = "red" if change.worse else "green"
            table.add_row(
                suite, case, provider, _value(change.before, unit), _value(change.after, unit),
                f"[{style}]{change.ratio:.3f}[/]", f"{change.p_value:.1g}",
            )  # fmt: skip
        console.print(table)
    worse = sum(change.worse for change in changed)
    console.print(
        f"{len(comparison.changes)} series compared: {len(changed) - worse} better, {worse} worse, the others within "
        f"noise; {comparison.untested} times with fewer than {FEWEST_RUNS} runs (--processes {FEWEST_RUNS}) or without "
        "competitors, which nothing can be told of"
    )
    drifts = ", ".join(
        f"{suite} {math.expm1(math.hypot(*moves) / math.sqrt(len(moves))):.0%}"
        for suite, moves in comparison.drift.items()
    )
    console.print(
        "Beyond noise: all runs of one result slower than all of the other, a t test of their medians, and one of the "
        f"change against what competitors moved between the results{f' ({drifts})' if drifts else ''}, of times less "
        f"that drift and as multiples of a competitor, with Holm's correction for all series, at {ALPHA:g}; and a "
        f"change of more than {LEAST:.0%}. Counts: any change.",
        style="dim",
    )
    return 1 if worse else 0


def _value(value: float, unit: str) -> str:
    if unit != SECONDS:
        return f"{value:,.3f} {unit}" if value % 1 else f"{value:,.0f} {unit}"
    for size, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{value / size:.3f} {name}"
    return f"{value * 1e6:.1f} µs"
