"""The pictures of a prefill run: speed-up against budget, and the photo with its kept tokens."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

INK, MUTED, FAINT = "#1f2933", "#616e7c", "#e4e7eb"
DIM = np.array([0.17, 0.19, 0.24], dtype=np.float32)
STYLE = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "figure.facecolor": "white",
}


class Line(NamedTuple):
    """One measured line of the speed-up chart and its ideal.

    Attributes:
        name: what was measured.
        color: of both.
        label_offset: from a point to its label, in typographic points.
        speedups: one for each budget.
        ideal: speed-up at any budget.
    """

    name: str
    color: str
    label_offset: tuple[float, float]
    speedups: Sequence[float]
    ideal: Callable[[float], float]


def label_speedup(
    axes: Axes,
    point: tuple[float, float],
    offset: tuple[float, float],
    color: str,
    fontsize: float,
    paper: str = "white",
) -> None:
    """Write the speed-up of a point (budget, speed-up) beside it, on a piece of ``paper``: readable over any line."""
    axes.annotate(
        f"{point[1]:.2f}x", point, offset, textcoords="offset points", ha="center", va="center", color=color,
        fontsize=fontsize, fontweight="bold", zorder=4, bbox={"facecolor": paper, "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def draw_speedups(
    path: Path, title: str, notes: Sequence[str], budgets: Sequence[float], lines: Sequence[Line]
) -> None:
    """Write the chart of speed-up against retention budget; less is kept the further to the right.

    Args:
        path: the PNG to write.
        title, notes: text above the chart; the notes are short lines.
        budgets: descending, the first one being what the others are compared with.
        lines: what to draw.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 6), dpi=160)
        axes = figure.add_axes((0.07, 0.12, 0.76, 0.64))
        shares = np.geomspace(budgets[0], budgets[-1], 100)
        for line in lines:
            ideals = [line.ideal(share) for share in shares]
            axes.plot(shares, ideals, color=line.color, alpha=0.6, linewidth=1.5, linestyle=(0, (4, 3)))
            axes.plot(budgets, line.speedups, color=line.color, linewidth=2.5, marker="o", markersize=7, zorder=3)
            for share, speedup in zip(budgets[1:], line.speedups[1:], strict=True):
                label_speedup(axes, (share, speedup), line.label_offset, line.color, 10.5)
            axes.annotate(
                line.name, (budgets[-1], line.speedups[-1]), (14, 0), textcoords="offset points",
                va="center", color=line.color, fontweight="bold", annotation_clip=False,
            )  # fmt: skip
            axes.annotate(
                f"ideal {ideals[-1]:.2f}x", (budgets[-1], line.speedups[-1]), (14, -16), textcoords="offset points",
                va="center", color=line.color, fontsize=10, annotation_clip=False,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(budgets[0] * 1.1, budgets[-1] / 1.06)
        axes.set_ylim(0)
        axes.set_xticks(budgets, [f"{share:.0%}" for share in budgets])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.set_ylabel("speed-up")
        axes.set_xlabel("retention budget: share of the visual tokens that the LLM reads", labelpad=8)
        figure.text(0.03, 0.93, title, fontsize=16, fontweight="bold")
        for row, note in enumerate(notes):
            figure.text(0.03, 0.885 - 0.036 * row, note, fontsize=10, color=MUTED)
        figure.savefig(path)


def draw_kept_tokens(
    path: Path, title: str, caption: str, photo: Image.Image, kept: Mapping[float, Tensor], patch: int
) -> None:
    """Write the photo once for every budget, with the patches of dropped tokens dimmed.

    Args:
        path: the PNG to write.
        title, caption: text above and below.
        photo: as the model saw it, [rows * patch, columns * patch] pixels.
        kept: by budget, bool [rows, columns], true where the token stays.
        patch: pixels a side behind one token.
    """
    pixels = np.asarray(photo, dtype=np.float32) / 255
    dimmed = DIM + 0.2 * pixels.mean(-1, keepdims=True)
    width = 3.0 * len(kept)
    panel = width / len(kept) * photo.height / photo.width
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, panel + 1.3), dpi=160)
        panels = figure.subplots(1, len(kept), squeeze=False)[0]
        figure.subplots_adjust(0.01, 0.45 / (panel + 1.3), 0.99, 1 - 0.85 / (panel + 1.3), wspace=0.04)
        for axes, (budget, mask) in zip(panels, kept.items(), strict=True):
            shown = mask.numpy().repeat(patch, 0).repeat(patch, 1)[..., None]
            axes.imshow(np.where(shown, pixels, dimmed))
            axes.set_title(f"{budget:.0%}: {int(mask.sum()):,} tokens", fontsize=12, color=INK)
            axes.set_axis_off()
        figure.text(0.01, 1 - 0.34 / (panel + 1.3), title, fontsize=16, fontweight="bold")
        figure.text(0.01, 0.16 / (panel + 1.3), caption, fontsize=10.5, color=MUTED)
        figure.savefig(path)
