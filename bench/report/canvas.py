"""Figures in two widths, and their SVG made to follow the page's colours and fonts."""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.figures import FAINT, INK, MUTED, STYLE

OURS, THEIRS, THIRD, FOURTH = "#d9480f", "#52667a", "#2563eb", "#0f766e"
WHITE = "#ffffff"
# What a colour of a figure is called in the page, where it depends on light and dark.
VARIABLES = {
    INK: "--ink", MUTED: "--muted", FAINT: "--faint", OURS: "--ours", THEIRS: "--theirs", THIRD: "--third",
    FOURTH: "--fourth", WHITE: "--paper",
}  # fmt: skip
WIDE, NARROW = 7.6, 3.7  # inches


class Chart(NamedTuple):
    """One chart.

    Attributes:
        name: of its files.
        title: what it shows, as a sentence or nearly one.
        caption: how to read it.
        draw: makes the figure; true: for a phone.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[bool], Figure]


def canvas(narrow: bool, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, or below each other on a phone; ``height`` of one panel in inches."""
    rows, columns = (panels, 1) if narrow else (1, panels)
    figure = Figure(figsize=(NARROW if narrow else WIDE, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def drawn(chart: Chart, narrow: bool) -> Figure:
    style = STYLE | {
        "font.size": 9.5 if narrow else 10.5,
        "svg.fonttype": "none",
        "svg.hashsalt": f"{chart.name}{narrow}",
    }
    with matplotlib.rc_context(style):
        figure = chart.draw(narrow)
        figure.canvas.draw()
    return figure


def logarithmic(axis, text: Callable[[float], str], ticks: list[float] | None = None) -> None:
    """A logarithmic axis whose ticks read as people write numbers."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    if ticks:
        axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def inline_svg(chart: Chart, narrow: bool) -> str:
    """The figure as an SVG element for the page: its colours are variables, its text the page's."""
    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": f"{chart.name}{narrow}"}
    figure = drawn(chart, narrow)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # Identifiers that are left, of clips and markers, are unique by their salt.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for color, variable in VARIABLES.items():
        svg = re.sub(re.escape(color), f"var({variable})", svg, flags=re.I)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    label = chart.title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    shown = "narrow" if narrow else "wide"
    return svg.replace("<svg", f'<svg class="{shown}" role="img" aria-label="{label}"', 1).strip()
