"""What a quality run says: a table for every task, and which targets it misses."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from bench.quality.evaluate import ALL, Row
from bench.quality.methods import TRAINING_FREE

LEARNED, SOFT, ORACLE = "learned", "learned, soft recipe", "oracle"
RIVALS = ("random", *TRAINING_FREE, "downsampling")


class StepTimes(NamedTuple):
    """Process seconds of a training step, medians of interleaved rounds."""

    soft: float
    default: float


def table(title: str, rows: Sequence[Row]) -> Table:
    """Accuracy with its standard error, and the recall of relevant tokens, by method and budget."""
    (full,) = [row for row in rows if row.method == ALL]
    budgets = list(dict.fromkeys(row.budget for row in rows if row.method != ALL))
    out = Table(
        title=f"{title}: {full.accuracy:.1%} of the answers right with all {full.kept} tokens", title_justify="left"
    )
    out.add_column("method")
    for budget in budgets:
        out.add_column(f"{budget:.0%}", justify="right")
    best = {
        budget: max(row.accuracy for row in rows if row.budget == budget and row.method in RIVALS) for budget in budgets
    }
    for method in dict.fromkeys(row.method for row in rows if row.method != ALL):
        cells = []
        for budget in budgets:
            if not (found := [row for row in rows if (row.method, row.budget) == (method, budget)]):
                cells.append("")
                continue
            (row,) = found
            seen = "" if row.recall is None else f" [dim]{row.recall:.2f}[/dim]"
            mark = "underline" if row.accuracy == best[budget] else "bold" if method == LEARNED else "none"
            cells.append(f"[{mark}]{row.accuracy:.1%}[/{mark}] ±{row.error:.1%}{seen}")
        out.add_row(method, *cells)
    return out


def find(rows: Sequence[Row], method: str, budget: float) -> Row:
    return next(row for row in rows if (row.method, row.budget) == (method, budget))


def failures(by_task: dict[str, Sequence[Row]], soft_accuracies: dict[str, float], step_times: StepTimes) -> list[str]:
    """Targets that were missed, a sentence each."""
    missed = []

    def check(holds: bool, sentence: str) -> None:
        if not holds:
            missed.append(sentence)

    for task in ("clutter", "tiles"):
        rows = by_task[task]
        full = next(row for row in rows if row.method == ALL).accuracy
        check(full >= 0.9, f"{task}: {full:.3f} right with all tokens, expected at least 0.9")
        gap = abs(soft_accuracies[task] - find(rows, LEARNED, 0.2).accuracy)
        check(gap <= 0.02, f"{task}: soft and hard evaluation differ by {gap:.3f} at 0.2, expected at most 0.02")
        for budget in (0.2, 0.1):
            learned, soft = find(rows, LEARNED, budget), find(rows, SOFT, budget)
            least = soft.accuracy - 2 * (learned.error**2 + soft.error**2) ** 0.5
            check(
                learned.accuracy >= least,
                f"{task} at {budget}: {learned.accuracy:.3f} by the default recipe, expected at least {least:.3f}, "
                "two standard errors below the soft recipe",
            )
        for seed, (_, recall) in enumerate(find(rows, LEARNED, 0.2).by_seed):
            check(
                (recall or 0) >= 0.9,
                f"{task}: seed {seed} keeps {recall:.3f} of the relevant tokens at 0.2, expected 0.9",
            )

    clutter, tiles, shapes = by_task["clutter"], by_task["tiles"], by_task["shapes"]
    full = next(row for row in shapes if row.method == ALL).accuracy
    for budget in (0.2, 0.1):
        ratio = find(shapes, LEARNED, budget).accuracy / full
        check(ratio >= 0.99, f"shapes at {budget}: {ratio:.3f} of the accuracy with all tokens, expected at least 0.99")
    recall = find(clutter, LEARNED, 0.2).recall or 0.0
    check(recall >= 0.98, f"clutter at 0.2: recall {recall:.3f}, expected at least 0.98")
    for rows, task, budget, share in (
        (clutter, "clutter", 0.2, 0.97),
        (clutter, "clutter", 0.1, 0.95),
        (tiles, "tiles", 0.1, 0.9),
    ):
        ratio = find(rows, LEARNED, budget).accuracy / find(rows, ORACLE, budget).accuracy
        check(ratio >= share, f"{task} at {budget}: {ratio:.3f} of the oracle's accuracy, expected at least {share}")
    rival = max((find(tiles, method, 0.1) for method in RIVALS), key=lambda row: row.accuracy)
    lead = find(tiles, LEARNED, 0.1).accuracy - rival.accuracy
    check(lead >= 0.12, f"tiles at 0.1: {lead:.3f} more right than {rival.method}, expected at least 0.12")
    ratio = step_times.default / step_times.soft
    check(ratio <= 0.4, f"a step of the default recipe takes {ratio:.2f} of a soft one, expected at most 0.4")
    return missed
