"""The chart of an evaluation: accuracy against budget, and the time of prefill beside it."""

from pathlib import Path
from typing import Any


def draw(summary: dict[str, Any], path: Path) -> None:
    """Write the chart of a summary (see :func:`run.summary_of`) as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(summary["budgets"], key=lambda row: row["budget"])
    budgets = [row["budget"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, prefill = figure.subplots(1, 2)
    for name, label in (("exact_match", "exact match"), ("anls", "ANLS")):
        accuracy.plot(budgets, [row[name] for row in rows], marker="o", label=label)
    accuracy.set(xlabel="retention budget", ylabel=f"mean of {rows[0]['questions']} questions", ylim=(0, 1.02))
    accuracy.legend(loc="lower right")
    prefill.plot(budgets, [row["prefill_seconds"] for row in rows], marker="o", color="tab:red")
    prefill.set(xlabel="retention budget", ylabel="prefill in seconds, median")
    prefill.set_ylim(bottom=0)
    for axes in (accuracy, prefill):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{summary['settings']['model']}, selector {summary['settings']['selector']}")
    figure.savefig(path, dpi=150)
