"""What the runs of a served model add up to: a table, a chart, and the targets."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from bench.figures import FAINT, INK, MUTED, STYLE
from bench.serve_load import Load

PLAIN, SELECTING = "all tokens", "selection"
COLORS = {PLAIN: "#9aa5b1", SELECTING: "#2563eb"}


class Row(NamedTuple):
    """One server at one number of clients.

    Attributes:
        requests_per_second: median of the rounds.
        first_p50_s, first_p95_s: time to the first token over the requests of all rounds.
        answer_p50_s, answer_p95_s: time to the last token.
        kv_tokens: tokens in the KV cache per request.
    """

    server: str
    concurrency: int
    requests_per_second: float
    first_p50_s: float
    first_p95_s: float
    answer_p50_s: float
    answer_p95_s: float
    kv_tokens: float


def summarise(loads: Mapping[tuple[str, int], Sequence[Load]]) -> list[Row]:
    """Rows from the rounds of every server and number of clients."""
    rows = []
    for (server, concurrency), rounds in loads.items():
        every = Load(0.0, [reply for load in rounds for reply in load.replies])
        throughput = statistics.median(load.requests_per_second for load in rounds)
        times = [every.percentile(percent, of) for of in ("first_token_s", "total_s") for percent in (50, 95)]
        rows.append(Row(server, concurrency, throughput, *times, every.kv_tokens))
    return rows


def speedups(rows: Sequence[Row]) -> dict[int, float]:
    """Requests per second with selection over those without, by number of clients."""
    by_case = {(row.server, row.concurrency): row.requests_per_second for row in rows}
    return {count: rate / by_case[PLAIN, count] for (server, count), rate in by_case.items() if server == SELECTING}


def failures(rows: Sequence[Row]) -> list[str]:
    """The numbers of clients at which selection serves fewer requests a second."""
    return [
        f"at concurrency {count} selection serves {ratio:.2f}x the requests a second, expected 1x at least"
        for count, ratio in speedups(rows).items()
        if ratio < 1
    ]


def table(rows: Sequence[Row], budget: float) -> Table:
    shown = Table("clients", "server", "requests/s", "", "first token", "p95", "answer", "p95", "KV tokens", box=None)
    for column in shown.columns[2:]:
        column.justify = "right"
    gains = speedups(rows)
    for row in sorted(rows, key=lambda row: row.concurrency):
        chosen = row.server == SELECTING
        shown.add_row(
            "" if chosen else str(row.concurrency),
            f"budget {budget:g}" if chosen else row.server,
            f"{row.requests_per_second:.2f}",
            f"{gains[row.concurrency]:.2f}x" if chosen else "",
            *(f"{seconds:.2f} s" for seconds in row[3:7]),
            f"{row.kv_tokens:.0f}",
            style="bold" if chosen else "",
        )
    return shown


def draw(path: Path, rows: Sequence[Row], budget: float, notes: Sequence[str]) -> None:
    """Write the chart: requests per second, and time to the first token, by number of clients."""
    counts = sorted({row.concurrency for row in rows})
    gains = speedups(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 5.4), dpi=160)
        rate, first, answer = figure.subplots(1, 3)
        figure.subplots_adjust(0.05, 0.13, 0.98, 0.7, wspace=0.2)
        for side, server in ((-0.2, PLAIN), (0.2, SELECTING)):
            name = server if server == PLAIN else f"budget {budget:g}"
            of_server: dict[int, Any] = {row.concurrency: row for row in rows if row.server == server}
            places = [index + side for index in range(len(counts))]
            rates = [of_server[count].requests_per_second for count in counts]
            rate.bar(places, rates, 0.38, color=COLORS[server], label=name)
            for axes, what in ((first, "first"), (answer, "answer")):
                medians = [getattr(of_server[count], f"{what}_p50_s") for count in counts]
                tails = [
                    getattr(of_server[count], f"{what}_p95_s") - p50 for count, p50 in zip(counts, medians, strict=True)
                ]
                axes.bar(places, medians, 0.38, color=COLORS[server])
                axes.errorbar(places, medians, [[0] * len(counts), tails], fmt="none", ecolor=INK, capsize=4)
            if server == SELECTING:
                for count, place, height in zip(counts, places, rates, strict=True):
                    label = f"{gains[count]:.2f}x"
                    rate.annotate(label, (place, height), (0, 4), textcoords="offset points", ha="center", color=INK)
        titles = ("requests per second", "seconds to the first token, and p95", "seconds to the last token, and p95")
        for axes, title in zip((rate, first, answer), titles, strict=True):
            axes.set_title(title, loc="left", fontsize=12, color=INK)
            axes.set_xticks(range(len(counts)), [str(count) for count in counts])
            axes.set_xlabel("clients at once")
            axes.set_axisbelow(True)
            axes.grid(axis="y", color=FAINT)
        rate.legend(frameon=False, loc="upper left")
        low, high = min(gains.values()), max(gains.values())
        figure.text(
            0.03, 0.92, f"{low:.1f}x to {high:.1f}x the requests with {budget:.0%} of the visual tokens",
            fontsize=16, fontweight="bold",
        )  # fmt: skip
        for row, note in enumerate(notes):
            figure.text(0.03, 0.865 - 0.04 * row, note, fontsize=10, color=MUTED)
        figure.savefig(path)
