"""From the samples of a prefill run to its table and its verdict."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from bench.harness import quantiles

STAGES = ("vit", "selection", "llm", "total")

# What a run is checked for, at CHECKED_BUDGET.
CHECKED_BUDGET = 0.2
LEAST_SHARE_OF_TOKEN_RATIO = 0.95
LEAST_SHARE_OF_TOTAL_IDEAL = 0.97
MOST_SELECTION = 0.005

# Spread of the rounds above which a run says more about other programs than about this one.
NOISY = 0.2


class Row(NamedTuple):
    """One budget, against the run's largest budget as the baseline.

    Attributes:
        budget: retention budget.
        visual_tokens, sequence_length: what the LLM reads of the photo, and with the text.
        kv_cache_bytes: what the prefill leaves.
        peak_bytes: most memory in use during a call, weights included; None where the system does not tell.
        wall, process: by stage, median seconds on the wall and of CPU time; "selection" is all between ViT and LLM.
        own: median seconds on the wall that the model without selector takes between ViT and LLM, in the same rounds;
            None in records of earlier versions, which did not measure it.
        added: what selection adds to them: "selection" on the wall less ``own``, which noise can make negative.
        spread: slowest call less fastest, over the median.
        llm_speedup, total_speedup: on the wall.
        llm_process_speedup: of CPU time, which other programs on the machine disturb less.
        llm_ideal: speed-up of an LLM whose time is in proportion to its sequence: the token ratio.
        llm_alone: median seconds of the LLM, without selection, on as many tokens of text, in the same rounds; None
            where it was not measured.
        total_ideal: speed-up of the call with that LLM, this budget's ViT and nothing between them.
        selection_share: ``added`` over the LLM's prefill.
    """

    budget: float
    visual_tokens: int
    sequence_length: int
    kv_cache_bytes: int
    peak_bytes: int | None
    wall: dict[str, float]
    process: dict[str, float]
    own: float | None
    added: float | None
    spread: float
    llm_speedup: float
    total_speedup: float
    llm_process_speedup: float
    llm_ideal: float
    llm_alone: float | None
    total_ideal: float
    selection_share: float | None


def summarise(samples: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for every budget, the largest first, from samples as the suite records them."""
    by_budget: dict[float, list[dict[str, Any]]] = {}
    for sample in samples:
        by_budget.setdefault(sample["budget"], []).append(sample)
    rows: list[Row] = []
    for budget in sorted(by_budget, reverse=True):
        first = by_budget[budget][0]
        wall, process = (
            {stage: quantiles([sample[f"{stage}_{kind}_s"] for sample in by_budget[budget]])["q50"] for stage in STAGES}
            for kind in ("wall", "process")
        )
        totals = [sample["total_wall_s"] for sample in by_budget[budget]]
        base_wall, base_process = (rows[0].wall, rows[0].process) if rows else (wall, process)
        base_length = rows[0].sequence_length if rows else first["sequence_length"]
        own = _median_of("own_wall_s", by_budget[budget])
        added = None if own is None else wall["selection"] - own
        llm_ideal = base_length / first["sequence_length"]
        rows.append(
            Row(
                budget=budget,
                visual_tokens=first["visual_tokens"],
                sequence_length=first["sequence_length"],
                kv_cache_bytes=first["kv_cache_bytes"],
                peak_bytes=max((sample.get("peak_bytes") or 0 for sample in by_budget[budget]), default=0) or None,
                wall=wall,
                process=process,
                own=own,
                added=added,
                spread=(max(totals) - min(totals)) / wall["total"],
                llm_speedup=base_wall["llm"] / wall["llm"],
                total_speedup=base_wall["total"] / wall["total"],
                llm_process_speedup=base_process["llm"] / process["llm"],
                llm_ideal=llm_ideal,
                llm_alone=_median_of("alone_wall_s", by_budget[budget]),
                total_ideal=total_ideal(base_wall, wall["vit"], llm_ideal),
                selection_share=None if added is None else added / wall["llm"],
            )
        )
    return rows


def _median_of(field: str, samples: Sequence[dict[str, Any]]) -> float | None:
    """Of a field that not all samples have; None where none of these do."""
    values = [sample[field] for sample in samples if field in sample]
    return quantiles(values)["q50"] if values else None


def total_ideal(base: dict[str, float], vit: float, llm_ideal: float) -> float:
    """Speed-up of a whole call whose LLM becomes ``llm_ideal`` times faster, with nothing between ViT and LLM.

    Args:
        base: the baseline's seconds by stage.
        vit: seconds of the vision encoder in the calls that are compared with it: it does the same work at every
            budget, and its noise is not the selection's.
    """
    return base["total"] / (vit + base["llm"] / llm_ideal)


def table(rows: Sequence[Row]) -> Table:
    """The run as people read it: one column for every budget."""
    result = Table(title="Prefill by retention budget", title_style="bold", box=box.ROUNDED, header_style="bold")
    result.add_column("", no_wrap=True)
    for row in rows:
        result.add_column(f"{row.budget:.0%}", justify="right", no_wrap=True)

    def line(name: str, cells: list[str], style: str = "", last: bool = False) -> None:
        result.add_row(name, *cells, style=style, end_section=last)

    line("visual tokens", [f"{row.visual_tokens:,}" for row in rows])
    line("sequence length", [f"{row.sequence_length:,}" for row in rows])
    line("KV cache, MB", [f"{row.kv_cache_bytes / 1e6:.1f}" for row in rows])
    line("peak memory, GB", [f"{row.peak_bytes / 1e9:.2f}" if row.peak_bytes else "-" for row in rows], last=True)
    line("ViT, s", [f"{row.wall['vit']:.2f}" for row in rows])
    line("between ViT and LLM, ms", [f"{row.wall['selection'] * 1e3:,.2f}" for row in rows])
    line("  selection adds, ms", [_known(row.added, lambda added: f"{added * 1e3:,.2f}") for row in rows])
    line("LLM prefill, s", [f"{row.wall['llm']:.2f}" for row in rows])
    line("end to end: first token, s", [f"{row.wall['total']:.2f}" for row in rows])
    line("  spread of the rounds", [f"{row.spread:.0%}" for row in rows], "dim", last=True)
    line("process time: LLM prefill, s", [f"{row.process['llm']:.2f}" for row in rows], "dim")
    line("process time: end to end, s", [f"{row.process['total']:.2f}" for row in rows], "dim", last=True)
    line("LLM prefill, speed-up", [f"{row.llm_speedup:.2f}x" for row in rows], "bold")
    line("  ideal", [f"{row.llm_ideal:.2f}x" for row in rows])
    line("  of the ideal", [f"{row.llm_speedup / row.llm_ideal:.0%}" for row in rows])
    line("  of as many tokens of text", [_of_alone(row) for row in rows], last=True)
    line("end to end, speed-up", [f"{row.total_speedup:.2f}x" for row in rows], "bold")
    line("  ideal", [f"{row.total_ideal:.2f}x" for row in rows])
    line("  of the ideal", [f"{row.total_speedup / row.total_ideal:.0%}" for row in rows], last=True)
    line("selection / LLM prefill", [_known(row.selection_share, "{:.2%}".format) for row in rows])
    return result


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _of_alone(row: Row) -> str:
    return f"{row.llm_alone / row.wall['llm']:.0%}" if row.llm_alone else "-"


def noise(rows: Sequence[Row]) -> str | None:
    """A sentence where other programs disturbed the run too much to trust it."""
    worst = max(rows, key=lambda row: row.spread)
    if worst.spread <= NOISY:
        return None
    return (
        f"calls at budget {worst.budget:.0%} differ by {worst.spread:.0%} between rounds: other programs disturbed "
        "the run, repeat it on a quiet machine"
    )


def failures(rows: Sequence[Row]) -> list[str]:
    """What falls short of the targets, or makes it impossible to tell, one sentence each."""
    row = next(row for row in rows if row.budget == CHECKED_BUDGET)
    disturbed = noise([rows[0], row])
    found = [disturbed] if disturbed else []
    found += share_failures(rows)
    if row.llm_speedup < LEAST_SHARE_OF_TOKEN_RATIO * row.llm_ideal:
        found.append(
            f"at budget {row.budget:.0%} the LLM prefill is {row.llm_speedup:.2f}x faster (in process time "
            f"{row.llm_process_speedup:.2f}x), expected at least {LEAST_SHARE_OF_TOKEN_RATIO} of the token ratio "
            f"{row.llm_ideal:.2f}"
        )
    if row.total_speedup < LEAST_SHARE_OF_TOTAL_IDEAL * row.total_ideal:
        found.append(
            f"at budget {row.budget:.0%} the call is {row.total_speedup:.2f}x faster end to end, expected at least "
            f"{LEAST_SHARE_OF_TOTAL_IDEAL} of the ideal {row.total_ideal:.2f}"
        )
    return found


def share_failures(rows: Sequence[Row]) -> list[str]:
    """Where the selection takes more than it may: what a single round can tell."""
    row = next(row for row in rows if row.budget == CHECKED_BUDGET)
    if row.selection_share is None:
        return [f"at budget {row.budget:.0%} it was not measured what the model takes between ViT and LLM by itself"]
    if row.selection_share <= MOST_SELECTION:
        return []
    return [
        f"at budget {row.budget:.0%} selection adds {row.selection_share:.2%} of the LLM prefill, "
        f"expected at most {MOST_SELECTION:.1%}"
    ]
