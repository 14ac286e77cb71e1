"""The rows of an ops run as people read them, and what falls short of the targets."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.ops_cases import REACHED
from bench.ops_run import Row
from bench.ops_timing import Timing

TIMES = ("ours", "theirs", "our_graph", "their_graph", "least")  # fields of a row
UNDISTURBED = 0.9  # share of the cores asked for, below which other programs had a hand in the times


def table(rows: Sequence[Row]) -> Table:
    """One line for every row, the operator named where it changes."""
    result = Table(title="vs_kernels against", title_style="bold", box=box.ROUNDED, header_style="bold")
    result.add_column("operator", min_width=len("straight_through_gather"))
    for name in ("shape", "against"):
        result.add_column(name, no_wrap=True)
    for name in ("ours", "theirs", "ratio", "CPU time", "target", "", "bandwidth", "cores"):
        result.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        following = rows[number + 1] if number + 1 < len(rows) else None
        result.add_row(
            "" if number and rows[number - 1].operator == row.operator else row.operator,
            row.shape,
            row.against,
            _seconds(row.ours.median),
            _seconds(row.theirs.median) if row.theirs else "-",
            f"[bold]{_figure(row.figure, row.unit)}[/]",
            f"[dim]{_figure(row.process_figure, row.unit)}[/]",
            "" if row.target is None else f"{'≥' if row.unit == 'x' else '≤'} {row.target:g}{_suffix(row.unit)}",
            "[cyan]limit[/]" if row.at_limit else {True: "[green]ok[/]", False: "[red]miss[/]", None: ""}[row.met],
            "" if row.bandwidth is None else f"{row.bandwidth:.0%}",
            f"[dim]{row.cores:.1f}[/]",
            end_section=following is not None and _section(following) != _section(row),
        )
    return result


def device_table(rows: Sequence[Row]) -> Table:
    """The calls as graphs, without the work of the host, and the memory that they allocate; for a CUDA device."""
    result = Table(title="Replayed as a CUDA graph; peak memory of a call", title_style="bold", box=box.ROUNDED)
    for name in ("operator", "shape", "against"):
        result.add_column(name, no_wrap=True)
    for name in ("ours", "theirs", "ratio", "bandwidth", "ours, MB", "theirs, MB"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.our_peak is None:
            continue
        ours, theirs = row.our_graph, row.their_graph
        faster = ours and row.bandwidth and row.bandwidth * row.ours.median / ours.median
        result.add_row(
            row.operator,
            row.shape,
            row.against,
            _seconds(ours.median) if ours else "-",
            _seconds(theirs.median) if theirs else "-",
            _figure(theirs.median / ours.median if ours and theirs else None, "x"),
            f"{faster:.0%}" if faster else "",
            *("-" if peak is None else f"{peak / 1e6:,.1f}" for peak in (row.our_peak, row.their_peak)),
        )
    return result


def _section(row: Row) -> str:
    """Forward and backward of an operator stand together, and so do the small calls."""
    return row.against if row.unit == "µs" else row.operator.partition(" ")[0]


def _seconds(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.2f} {name}"
    return f"{seconds * 1e6:.1f} µs"


def _figure(figure: float | None, unit: str) -> str:
    if figure is None:
        return "-"
    return f"{figure:.{0 if figure >= 100 else 1 if figure >= 10 else 2}f}{_suffix(unit)}"


def _suffix(unit: str) -> str:
    return "x" if unit == "x" else f" {unit}"


def record(row: Row) -> dict[str, Any]:
    """A row as it is written down: times in seconds, ``figure`` and ``target`` in ``unit``."""
    fields = {**row._asdict(), "met": row.met}
    return fields | {who: fields[who] and fields[who].record() for who in TIMES}


def from_record(record: dict[str, Any]) -> Row:
    """The row that :func:`record` wrote down."""
    fields = {name: record[name] for name in Row._fields}
    for who in TIMES:
        fields[who] = fields[who] and Timing.from_record(fields[who])
    return Row(**fields)


def failures(rows: Sequence[Row]) -> list[str]:
    """What falls short of the targets and of what this machine has, one sentence each."""
    return [_sentence(row) for row in rows if row.met is False and not row.at_limit]


def limits(rows: Sequence[Row]) -> list[str]:
    """Where a target asks for more than this machine has: the arithmetic, one sentence each."""
    return [_limit(row) for row in rows if row.at_limit]


def _limit(row: Row) -> str:
    fresh = f", {row.fresh / 1e6:,.0f} of them to fresh memory," if row.fresh else ""
    return (
        f"{row.operator}, {row.shape}: {_figure(row.figure, 'x')} where {row.target:g}x are asked; nothing but "
        f"moving its {row.moved / 1e6:,.0f} MB{fresh} took {_seconds(row.least.median)} meanwhile, which would be "
        f"{_figure(row.most, 'x')}"
    )


def _sentence(row: Row) -> str:
    where = f"{row.operator}, {row.shape}"
    if row.figure is None:
        return f"{where}: not compared with {row.against}: {row.note}"
    # one digit more than in the table, where a miss by less would look like the target
    figure, process = (f"{value:.4g}{_suffix(row.unit)}" for value in (row.figure, row.process_figure))
    target = f"{row.target:g}{_suffix(row.unit)}"
    if row.unit == "x":
        limit = f", or {_figure(REACHED * row.most, 'x')} by what this machine moves" if row.most else ""
        return f"{where}: {figure} against {row.against} (in process time {process}), expected at least {target}{limit}"
    return f"{where}: {figure} beyond {row.against} (in process time {process}), expected at most {target}"


def notes(rows: Sequence[Row]) -> list[str]:
    return [f"{row.operator}, {row.shape}: {row.note}" for row in rows if row.note]


def disturbance(rows: Sequence[Row], cores: int) -> str | None:
    """What other programs took of the ``cores`` asked for, in words; None when the run had them for itself."""
    disturbed = [row for row in rows if row.cores < UNDISTURBED * cores]
    if not disturbed:
        return None
    least = min(row.cores for row in disturbed)
    return (
        f"Other programs disturbed {len(disturbed)} of {len(rows)} rows: work for {cores} cores got as few as "
        f"{least:.1f} (its process time over its wall time). Repeat on a quiet machine."
    )
