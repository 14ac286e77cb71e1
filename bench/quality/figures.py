"""The pictures of a quality run: accuracy against budget, and pictures with their kept tokens."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from torch import Tensor

from bench.figures import DIM, INK, MUTED, STYLE
from bench.quality.evaluate import ALL, Row
from bench.quality.summary import LEARNED, ORACLE

COLORS = {
    LEARNED: "#d9480f", ORACLE: "#1f2933", "DivPrune": "#2563eb", "attention received": "#0f766e", "random": "#9aa5b1",
    "token norm": "#a16207", "uniform grid": "#7c3aed", "downsampling": "#be185d",
}  # fmt: skip


CHARACTERS_PER_INCH = 12  # of the notes


def draw_accuracy(path: Path, titles: Mapping[str, str], by_task: Mapping[str, Sequence[Row]], notes: str) -> None:
    """Write the chart: a panel for every task, a line for every method, less is kept the further to the right."""
    with matplotlib.rc_context(STYLE):
        width = 5.4 * len(by_task) + 2.2
        figure = Figure(figsize=(width, 5.6), dpi=150)
        panels = figure.subplots(1, len(by_task), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(0.55 / width, 0.13, 1 - 2.1 / width, 0.75, wspace=0.08)
        for axes, (task, rows) in zip(panels, by_task.items(), strict=True):
            full = next(row for row in rows if row.method == ALL)
            axes.axhline(full.accuracy, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
            budgets = sorted({row.budget for row in rows if row.method != ALL}, reverse=True)
            for method, color in COLORS.items():
                line = [row for row in rows if row.method == method]
                main = method in (LEARNED, ORACLE)
                axes.errorbar(
                    [row.budget for row in line], [row.accuracy for row in line], [row.error for row in line],
                    color=color, linewidth=2.5 if main else 1.6, marker="o", markersize=6 if main else 4,
                    linestyle=(0, (4, 3)) if method == ORACLE else "-", zorder=4 if main else 3, label=method,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlim(budgets[0] * 1.1, budgets[-1] / 1.1)
            axes.set_ylim(0, 1.02)
            axes.set_xticks(budgets, [f"{share:.0%}" for share in budgets])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.set_title(titles[task], fontsize=12, color=INK, loc="left")
            axes.set_xlabel("retention budget")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=10)
        figure.text(0.02, 0.93, "Answers right against visual tokens kept", fontsize=16, fontweight="bold")
        lines = textwrap.fill(notes, int(width * CHARACTERS_PER_INCH))
        figure.text(0.02, 0.9, lines, fontsize=9.5, color=MUTED, verticalalignment="top")
        figure.savefig(path)


def draw_contact_sheet(
    path: Path,
    title: str,
    caption: str,
    pictures: Tensor,  # uint8 [n, H, W, 3]
    kept: Mapping[str, Tensor],  # bool [n, N], by method
    relevant: Tensor,  # bool [n, N]
) -> None:
    """Write pictures side by side, and below each what every method keeps of it; relevant tokens are framed."""
    number, side = len(pictures), int(relevant.shape[1] ** 0.5)
    rows = {"the picture": None, **kept}
    width, height = 2.1 * number + 1.9, 2.1 * len(rows) + 1.1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=110)
        panels = figure.subplots(len(rows), number, squeeze=False)
        figure.subplots_adjust(1.85 / width, 0.3 / height, 0.995, 1 - 0.7 / height, wspace=0.03, hspace=0.03)
        for line, (name, masks) in zip(panels, rows.items(), strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, color=INK)
            for axes, index in zip(line, range(number), strict=True):
                pixels = pictures[index].numpy() / 255
                if masks is not None:
                    shown = _per_pixel(masks[index], side, pixels.shape[0])
                    pixels = np.where(shown, pixels, DIM + 0.2 * pixels.mean(-1, keepdims=True))
                axes.imshow(pixels)
                _frame(axes, relevant[index].view(side, side), pixels.shape[0] // side)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                axes.spines[:].set_visible(False)
        figure.text(0.01, 1 - 0.4 / height, title, fontsize=15, fontweight="bold")
        figure.text(0.01, 0.1 / height, caption, fontsize=10, color=MUTED)
        figure.savefig(path)


def _per_pixel(mask: Tensor, side: int, pixels: int) -> np.ndarray:
    return mask.view(side, side).numpy().repeat(pixels // side, 0).repeat(pixels // side, 1)[..., None]


def _frame(axes: matplotlib.axes.Axes, relevant: Tensor, token: int) -> None:
    from matplotlib.patches import Rectangle

    for y, x in relevant.nonzero().tolist():
        corner = (x * token - 0.5, y * token - 0.5)
        axes.add_patch(Rectangle(corner, token, token, fill=False, edgecolor="#facc15", linewidth=1.6))
