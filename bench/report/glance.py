"""The answers at a glance: how much faster, how close to the limit, how it grows, what it costs in memory."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bench.points import Point
from bench.report.charts import curves
from bench.results import SuiteRun, merged_points
from bench.scaling_fit import fit


class Tile(NamedTuple):
    """A figure, what it is, and under which conditions."""

    figure: str
    what: str
    detail: str


def tiles(runs: Mapping[str, SuiteRun]) -> list[Tile]:
    """The answers that the suites at hand give."""
    makers = {"ops": _ops, "prefill": _prefill, "scaling": _scaling, "train": _train}
    return [tile for suite, make in makers.items() if suite in runs for tile in make(runs[suite])]


def _ops(run: SuiteRun) -> Iterator[Tile]:
    rows = [r for r in run.of("row") if r["operator"] == "select_tokens" and r["figure"] and r["unit"] == "x"]
    if rows:
        row = rows[-1]
        yield Tile(f"{row['figure']:,.0f}x", "faster selection than the published one", row["shape"])
    rows = [r for r in run.of("row") if r["against"] == "reading as much" and "float32" in r["shape"]]
    if rows:
        row = rows[-1]
        detail = f"importance_scores, {row['shape']}, against reading as many bytes in the same rounds"
        yield Tile(f"{row['figure']:.0%}", "of the speed of plain reads", detail)


def _prefill(run: SuiteRun) -> Iterator[Tile]:
    from bench.prefill_summary import CHECKED_BUDGET, summarise

    samples = run.of("sample")
    by_prompt = {sample["prompt"]: [] for sample in samples}
    for sample in samples:
        by_prompt[sample["prompt"]].append(sample)
    rows, *others = [summarise(of_prompt) for of_prompt in by_prompt.values()] or [[]]
    for row in rows:
        if row.budget == CHECKED_BUDGET:
            share = f"{row.llm_speedup / row.llm_ideal:.0%} of the ideal {row.llm_ideal:.2f}x"
            yield Tile(f"{row.llm_speedup:.2f}x", "faster LLM prefill at budget 20 %", share)
            if row.added is None or row.selection_share is None:
                continue
            detail = f"{row.added * 1e6:,.0f} µs, {row.visual_tokens} tokens kept of {rows[0].visual_tokens:,}"
            shares = [
                f"{other.selection_share:+.2%} of {other_rows[0].visual_tokens:,}"
                for other_rows in others
                for other in other_rows
                if other.budget == CHECKED_BUDGET and other.selection_share is not None
            ]
            detail = "; ".join([detail, *shares])
            yield Tile(f"{row.selection_share:+.2%}", "on the LLM prefill, by selection", detail)


def _scaling(run: SuiteRun) -> Iterator[Tile]:
    powers = {
        provider: fit({size: value for size, value in curve.items() if size <= 262_144})
        for provider, curve in curves(run, "select_tokens", "N", "s").items()
    }
    if ours := powers.get("vs_kernels"):
        theirs = powers.get("published")
        detail = f"time against N; published: {theirs.exponent:.2f}" if theirs else "time against N"
        yield Tile(f"N^{ours.exponent:.2f}", "growth of a selection", detail)


def _train(run: SuiteRun) -> Iterator[Tile]:
    from bench.suites.train import ACTIVATIONS, STEP, by_provider
    from bench.train_step import GATHERED, PUBLISHED

    points = [(p["case"], Point(**{n: p[n] for n in Point._fields})) for p in merged_points(run.records)]
    found = by_provider(points)
    if {PUBLISHED, GATHERED} <= found.keys() and all(ACTIVATIONS in found[name] for name in (PUBLISHED, GATHERED)):
        base, ours = found[PUBLISHED], found[GATHERED]
        if STEP in base and STEP in ours:
            yield Tile(f"{base[STEP] / ours[STEP]:.1f}x", "faster training step", "gathered, against published soft")
        ratio = base[ACTIVATIONS] / ours[ACTIVATIONS]
        yield Tile(f"{ratio:.1f}x", "less activation memory in training", "gathered, against published soft")
