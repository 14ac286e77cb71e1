"""The charts of a report, each from the records of one suite."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import FAINT, INK, MUTED, label_speedup
from bench.points import text
from bench.report.canvas import FOURTH, OURS, THEIRS, THIRD, WHITE, Chart, canvas, logarithmic
from bench.results import SuiteRun, merged_points
from bench.scaling_fit import fit
from bench.serve_load import by_case
from bench.serve_summary import summarise as summarise_serving

COLOR_OF = {"vs_kernels": OURS, "collapsed, eager": THIRD, "published": THEIRS}


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], texts: Sequence[str], **style: Any) -> None:
    """Bars from the left, each with its text, and nothing else."""
    axes.barh(range(len(names)), values, height=0.6, **style)
    for place, (value, label) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(
            label, (value, place), (5, 0), textcoords="offset points", va="center", color=INK, fontweight="bold",
            fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, max(values) * 1.3)


def ops_rows(run: SuiteRun) -> list[dict[str, Any]]:
    """Of every operator and competitor the largest shape that both ran."""
    rows = {(r["operator"], r["against"]): r for r in run.of("row") if r["unit"] == "x" and r["figure"] is not None}
    return [row for row in rows.values() if row["against"] != "reading as much"]


def faster(run: SuiteRun) -> Chart | None:
    rows = sorted(ops_rows(run), key=lambda row: row["figure"])
    if not rows:
        return None

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = canvas(narrow, (0.72 if narrow else 0.4) * len(rows) + 0.6)
        places = range(len(rows))
        left = min(0.8, 0.9 * rows[0]["figure"])
        axes.barh(places, [row["figure"] - left for row in rows], left=left, color=OURS, height=0.36 if narrow else 0.6)
        for place, row in zip(places, rows, strict=True):
            number = f"{row['figure']:,.0f}x" if row["figure"] >= 10 else f"{row['figure']:.1f}x"
            axes.annotate(
                number, (row["figure"], place), (5, 0), textcoords="offset points", va="center", color=INK,
                fontweight="bold",
            )  # fmt: skip
            name = f"{row['operator']}, {row['shape']}"
            if narrow:
                axes.annotate(
                    f"{name}\nagainst {row['against']}", (1, place), (3, 12), textcoords="offset points",
                    va="bottom", color=MUTED, fontsize=7.5, linespacing=1.05,
                )  # fmt: skip
        labels = [f"{row['operator']}, {row['shape']}\nagainst {row['against']}" for row in rows]
        axes.set_yticks(list(places), [""] * len(rows) if narrow else labels, fontsize=8.5)
        axes.axvline(1, color=MUTED, linewidth=1)
        logarithmic(axes.xaxis, lambda value: f"{value:g}x")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.set_xlim(left, rows[-1]["figure"] * (3.5 if narrow else 1.8))
        axes.set_ylim(-0.6, len(rows) - (0.2 if narrow else 0.4))
        return figure

    return Chart(
        "faster", "How many times faster than the alternative",
        "Medians of interleaved calls of one run, every result verified first. Logarithmic; at 1x both take as long.",
        draw,
    )  # fmt: skip


def roofline(run: SuiteRun) -> Chart | None:
    ceilings = run.of("ceilings")
    rows = [
        r for r in run.of("row") if r.get("flops") and "float32" in r["shape"] and r["against"] != "reading as much"
    ]
    if not ceilings or not rows:
        return None
    bandwidth, rate = (max(c[name] for c in ceilings) for name in ("most_bytes_per_second", "flops_per_second"))
    ours = {(r["flops"] / r["moved"], r["flops"] / r["ours"]["wall"]["q50"]) for r in rows}
    theirs = {
        (r["their_flops"] / r["their_moved"], r["their_flops"] / r["theirs"]["wall"]["q50"])
        for r in rows
        if r["theirs"] and r["their_flops"]
    }

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = canvas(narrow, 3.4 if narrow else 3.9)
        low, high = 0.1, max(x for x, _ in ours | theirs) * 3
        ridge = rate / bandwidth
        axes.plot([low, ridge, high], [low * bandwidth, rate, rate], color=INK, linewidth=1.5)
        axes.scatter(*zip(*ours, strict=True), s=45, color=OURS, zorder=3, label="vs_kernels: scores, selection")
        if theirs:
            axes.scatter(
                *zip(*theirs, strict=True), s=45, color=THEIRS, zorder=3, marker="s", label="the published algorithm"
            )
        logarithmic(axes.xaxis, lambda value: f"{value:g}")
        logarithmic(axes.yaxis, lambda value: f"{value / 1e9:g}")
        axes.set_xlim(low, high)
        axes.set_ylim(min(y for _, y in ours) / 4, rate * 1.8)
        style = {"color": INK, "fontsize": 8.5, "textcoords": "offset points"}
        axes.annotate(f"{rate / 1e9:,.0f} Gflop/s, matrix product", (ridge, rate), (0, 6), ha="left", **style)
        axes.annotate(
            f"{bandwidth / 1e9:.0f} GB/s, reads", (low * 1.5, low * 1.5 * bandwidth), (8, -12), ha="left", **style
        )
        axes.set_xlabel("floating-point operations per byte")
        axes.set_ylabel("Gflop/s")
        axes.legend(loc="center right", frameon=False, fontsize=8.5, labelcolor=INK)
        return figure

    return Chart(
        "roofline", "How close to what this machine can do",
        "Both ceilings were measured in the same run: the fastest reads and products. The published algorithm keeps "
        "the arithmetic units busy with work that the library does without; the library is bound by memory. Points "
        "above the ceiling of reads found a part in the caches.", draw,
    )  # fmt: skip


def curves(run: SuiteRun, operator: str, axis: str, unit: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for point in merged_points(run.records):
        if (
            point["values"]
            and point["unit"] == unit
            and point["case"].get("operator") == operator
            and axis in point["case"]
        ):
            values = sorted(point["values"])
            found.setdefault(point["provider"], {})[point["case"][axis]] = values[len(values) // 2]
    return found


def _growth(run: SuiteRun, unit: str, name: str, title: str, caption: str) -> Chart | None:
    panels = {
        "tokens of one pool": curves(run, "select_tokens", "N", unit),
        "pools of 256 tokens": curves(run, "select_tokens", "pools", unit),
    }
    if not any(panels.values()):
        return None

    def draw(narrow: bool) -> Figure:
        figure, all_axes = canvas(narrow, 3.0 if narrow else 3.6, len(panels))
        for axes, (label, found) in zip(all_axes, panels.items(), strict=True):
            sizes = sorted({size for curve in found.values() for size in curve})
            for provider, curve in found.items():
                color = COLOR_OF.get(provider, FOURTH)
                power = fit({size: value for size, value in curve.items() if size <= 262_144})
                axes.plot(
                    list(curve), list(curve.values()), color=color, linewidth=2, marker="o", markersize=4.5,
                    label=provider + (f": exponent {power.exponent:.2f}" if power else ""),
                )  # fmt: skip
            ticks = sizes[::2] if narrow or len(sizes) > 6 else sizes
            logarithmic(axes.xaxis, _short, ticks)
            logarithmic(axes.yaxis, lambda value: text(value, unit))
            axes.set_xlabel(label)
            axes.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2)
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.35)
        return figure

    return Chart(name, title, caption, draw)


def _short(value: float) -> str:
    for size, name in ((2**20, "M"), (2**10, "k")):
        if value >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def scaling(run: SuiteRun) -> Chart | None:
    return _growth(
        run, "s", "scaling", "How a selection grows",
        "Score, Top-K and gather, D = 512, float32, budget 0.2. Exponents: least squares of the logarithms; 1 is "
        "linear. Competitors know one pool and are called for one after the other.",
    )  # fmt: skip


def memory(run: SuiteRun) -> Chart | None:
    return _growth(
        run, "bytes", "memory", "What a selection costs in memory",
        "Peak beyond the inputs, counted at the allocator. The library's is its results: the kept rows and the scores.",
    )  # fmt: skip


def train(run: SuiteRun) -> Chart | None:
    from bench.points import Point
    from bench.suites.train import ACTIVATIONS, STEP, by_provider

    points = [(p["case"], Point(**{n: p[n] for n in Point._fields})) for p in merged_points(run.records)]
    found = {name: values for name, values in by_provider(points).items() if STEP in values and ACTIVATIONS in values}
    if not found:
        return None

    def draw(narrow: bool) -> Figure:
        figure, all_axes = canvas(narrow, 0.5 * len(found) + 0.6, 2)
        names = list(found)[::-1]
        for number, (axes, what, unit, label) in enumerate(
            zip(all_axes, (STEP, ACTIVATIONS), ("s", "bytes"), ("seconds a step", "activation memory"), strict=True)
        ):
            values = [found[name][what] for name in names]
            colors = [THEIRS if name.startswith("published") else OURS for name in names]
            shown = names if narrow or not number else [""] * len(names)
            bars(axes, shown, values, [text(value, unit) for value in values], color=colors)
            axes.set_title(label, loc="left", fontsize=9.5, color=MUTED)
        return figure

    return Chart(
        "train", "A training step, against the published recipe",
        f"{run.facts['visual_tokens']:,} visual tokens, budget 0.2, frozen model; forward, backward, optimizer, the "
        "vision encoder included. Activations: what is allocated when the forward is done.", draw,
    )  # fmt: skip


def prefill(run: SuiteRun) -> Chart | None:
    from bench.prefill_summary import summarise

    samples = run.of("sample")
    if not samples:
        return None
    rows = summarise([sample for sample in samples if sample["prompt"] == samples[0]["prompt"]])

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = canvas(narrow, 3.2 if narrow else 3.7)
        budgets = [row.budget for row in rows]
        for label, color, measured, ideal, offset in (
            ("LLM prefill", OURS, [r.llm_speedup for r in rows], [r.llm_ideal for r in rows], 10),
            ("end to end", THIRD, [r.total_speedup for r in rows], [r.total_ideal for r in rows], -12),
        ):
            axes.plot(budgets, ideal, color=color, linewidth=1.3, linestyle=(0, (4, 3)), alpha=0.8)
            axes.plot(budgets, measured, color=color, linewidth=2.2, marker="o", markersize=6, label=label)
            for budget, speedup in list(zip(budgets, measured, strict=True))[1:]:
                label_speedup(axes, (budget, speedup), (-10, offset), color, 8.5, WHITE)
        logarithmic(axes.xaxis, lambda value: f"{value:.0%}", budgets)
        axes.set_xlim(budgets[0] * 1.1, budgets[-1] / 1.15)
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.set_xlabel("share of the visual tokens that the LLM reads")
        axes.legend(loc="upper left", frameon=False, labelcolor=INK)
        return figure

    return Chart(
        "prefill", "Prefill of a model, by retention budget",
        f"{run.facts['model']}; {samples[0]['prompt']}, {run.facts['dtype']}. Dashed, the ideal: nothing between ViT "
        "and LLM, and the LLM's time in proportion to its sequence.", draw,
    )  # fmt: skip


def traffic(run: SuiteRun) -> Chart | None:
    rows = run.of("traffic")
    first = [row for row in rows if row["shape"] == rows[0]["shape"]] if rows else []
    if not first:
        return None

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = canvas(narrow, 0.3 * len(first) + 0.6)
        names = [row["call"].replace("straight_through", "st" if narrow else "straight_through") for row in first][::-1]
        values = [row["h100_seconds_computed"] * 1e6 for row in first][::-1]
        texts = [f"{value:.1f} µs" for value in values]
        bars(axes, names, values, texts, facecolor=WHITE, edgecolor=OURS, hatch="////", linewidth=1)
        return figure

    return Chart(
        "gpu", "On an H100: not measured here, computed",
        f"{first[0]['shape']}, bfloat16. Launches and bytes were counted in Triton's interpreter; the time is the "
        "larger of all bytes over 3.35 TB/s and 3 µs a launch. It is a floor, not a measurement.", draw,
    )  # fmt: skip


def serve(run: SuiteRun) -> Chart | None:
    rows = summarise_serving(by_case(run.records))
    if not rows:
        return None
    names = list(dict.fromkeys(row.server for row in rows))

    def draw(narrow: bool) -> Figure:
        figure, (rate, cache) = canvas(narrow, 3.0 if narrow else 3.4, 2)
        counts = sorted({row.concurrency for row in rows})
        color_of = dict(zip(names, (THEIRS, OURS, THIRD, FOURTH), strict=False))
        for name, color in color_of.items():
            line = sorted((row for row in rows if row.server == name), key=lambda row: row.concurrency)
            clients = [row.concurrency for row in line]
            rate.plot(
                clients, [row.requests_per_second for row in line], color=color, linewidth=2, marker="o", markersize=5,
                label=name,
            )  # fmt: skip
        logarithmic(rate.xaxis, lambda value: f"{value:g}", list(counts))
        rate.set_ylim(0)
        rate.set_xlabel("clients at once")
        rate.set_title("requests a second", loc="left", fontsize=9.5, color=MUTED)
        rate.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=INK)
        tokens = {row.server: row.kv_tokens for row in rows}
        shown = list(color_of)[::-1]
        values = [tokens[name] for name in shown]
        colors = [color_of[name] for name in shown]
        bars(cache, shown, values, [f"{value:,.0f}" for value in values], color=colors)
        cache.set_title("tokens in the KV cache per request", loc="left", fontsize=9.5, color=MUTED)
        return figure

    return Chart(
        "serve", "A vLLM server under load, by retention budget",
        f"vLLM {run.facts['vllm']}, a small random model, {run.facts['visual_tokens']:,} visual tokens and "
        f"{run.facts['new_tokens']} new ones a request; medians of interleaved rounds.", draw,
    )  # fmt: skip


def quality(run: SuiteRun) -> Chart | None:
    rows = run.of("row")
    if not rows:
        return None
    task = next((r["task"] for r in rows if r["task"] == "tiles"), rows[0]["task"])
    colors = {"learned": OURS, "oracle": INK, "token norm": FOURTH, "DivPrune": THIRD, "random": MUTED}

    def draw(narrow: bool) -> Figure:
        figure, (axes,) = canvas(narrow, 3.2 if narrow else 3.7)
        budgets: Sequence[float] = sorted({r["budget"] for r in rows if r["budget"] < 1}, reverse=True)
        for method, color in colors.items():
            line = sorted((r for r in rows if r["task"] == task and r["method"] == method), key=lambda r: -r["budget"])
            if line:
                axes.errorbar(
                    [r["budget"] for r in line], [r["accuracy"] for r in line], [r["error"] for r in line], color=color,
                    linewidth=2.2 if method == "learned" else 1.4, marker="o", markersize=4.5, label=method,
                )  # fmt: skip
        logarithmic(axes.xaxis, lambda value: f"{value:.0%}", list(budgets))
        axes.set_xlim(budgets[0] * 1.1, budgets[-1] / 1.1)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("retention budget")
        columns = 3 if narrow else len(colors)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, labelcolor=INK)
        return figure

    return Chart(
        "quality", "Answers that are right after selection",
        f"Task {task!r}, {run.facts['pictures']:,} pictures of the validation set; small models trained on real "
        "handwriting and photos. Error bars: one standard error.", draw,
    )  # fmt: skip
