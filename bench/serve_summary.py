"""What the runs of a served model add up to: a table, a chart, and the targets."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from bench.figures import FAINT, INK, MUTED, STYLE
from bench.serve_load import PLAIN, Load

COLORS = ("#9aa5b1", "#2563eb", "#d9480f", "#0f766e")


def name_of(budget: float) -> str:
    """What requests at a budget are called."""
    return f"budget {budget:.0%}"


class Row(NamedTuple):
    """Requests at one budget from one number of clients.

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


def speedups(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """Requests per second with selection over those without, by name of the budget and number of clients."""
    rates = {(row.server, row.concurrency): row.requests_per_second for row in rows}
    return {key: rate / rates[PLAIN, key[1]] for key, rate in rates.items() if key[0] != PLAIN}


def failures(rows: Sequence[Row]) -> list[str]:
    """The budgets and numbers of clients at which selection serves fewer requests a second."""
    return [
        f"at concurrency {count} {server} serves {ratio:.2f}x the requests a second, expected 1x at least"
        for (server, count), ratio in speedups(rows).items()
        if ratio < 1
    ]


def table(rows: Sequence[Row]) -> Table:
    shown = Table("clients", "", "requests/s", "", "first token", "p95", "answer", "p95", "KV tokens", box=None)
    for column in shown.columns[2:]:
        column.justify = "right"
    gains = speedups(rows)
    for row in sorted(rows, key=lambda row: row.concurrency):
        plain = row.server == PLAIN
        shown.add_row(
            str(row.concurrency) if plain else "",
            row.server,
            f"{row.requests_per_second:.2f}",
            "" if plain else f"{gains[row.server, row.concurrency]:.2f}x",
            *(f"{seconds:.2f} s" for seconds in row[3:7]),
            f"{row.kv_tokens:.0f}",
            style="" if plain else "bold",
        )
    return shown


def draw(path: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write the chart: requests per second, and time to the first token, by number of clients."""
    counts = sorted({row.concurrency for row in rows})
    names = list(dict.fromkeys(row.server for row in rows))
    gains = speedups(rows)
    width = 0.8 / len(names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 5.4), dpi=160)
        rate, first, answer = figure.subplots(1, 3)
        figure.subplots_adjust(0.05, 0.13, 0.98, 0.7, wspace=0.2)
        for number, (server, color) in enumerate(zip(names, COLORS, strict=False)):
            of_server: dict[int, Any] = {row.concurrency: row for row in rows if row.server == server}
            places = [index + width * (number - (len(names) - 1) / 2) for index in range(len(counts))]
            rates = [of_server[count].requests_per_second for count in counts]
            rate.bar(places, rates, 0.95 * width, color=color, label=server)
            for axes, what in ((first, "first"), (answer, "answer")):
                medians = [getattr(of_server[count], f"{what}_p50_s") for count in counts]
                tails = [
                    getattr(of_server[count], f"{what}_p95_s") - p50 for count, p50 in zip(counts, medians, strict=True)
                ]
                axes.bar(places, medians, 0.95 * width, color=color)
                axes.errorbar(places, medians, [[0] * len(counts), tails], fmt="none", ecolor=INK, capsize=4)
            if server != PLAIN:
                for count, place, height in zip(counts, places, rates, strict=True):
                    label = f"{gains[server, count]:.2f}x"
                    rate.annotate(label, (place, height), (0, 4), textcoords="offset points", ha="center", color=INK)
        titles = ("requests per second", "seconds to the first token, and p95", "seconds to the last token, and p95")
        for axes, title in zip((rate, first, answer), titles, strict=True):
            axes.set_title(title, loc="left", fontsize=12, color=INK)
            axes.set_xticks(range(len(counts)), [str(count) for count in counts])
            axes.set_xlabel("clients at once")
            axes.set_axisbelow(True)
            axes.grid(axis="y", color=FAINT)
        rate.legend(frameon=False, loc="upper left")
        of_last = [gain for (server, _), gain in gains.items() if server == names[-1]]
        title = f"{min(of_last):.1f}x to {max(of_last):.1f}x the requests with {names[-1]} of the visual tokens"
        figure.text(0.03, 0.92, title.replace("budget ", ""), fontsize=16, fontweight="bold")
        for row, note in enumerate(notes):
            figure.text(0.03, 0.865 - 0.04 * row, note, fontsize=10, color=MUTED)
        figure.savefig(path)
