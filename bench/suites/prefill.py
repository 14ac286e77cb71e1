"""Prefill of a Qwen2.5-VL model on a photo, at several retention budgets: the demo."""

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from bench.command_line import count, ending, exit_codes
from bench.harness import Arguments, Clock, Recorder, device_argument, environment, peak_memory
from bench.photo import PATCH, read_photo
from bench.prefill_summary import (
    CHECKED_BUDGET,
    STAGES,
    Row,
    failures,
    noise,
    share_failures,
    summarise,
    table,
    total_ideal,
)
from bench.results import load, write_csv
from vs_kernels.arguments import budget
from vs_kernels.plan import SelectionPlan

if TYPE_CHECKING:  # transformers takes seconds to import, for which a mistyped argument should not wait
    from bench.models import Architecture
    from bench.prefill_stages import Prefill
    from bench.subject import Subject

PROGRAM = "python -m bench prefill"
SEED = 0
VISUAL_TOKENS = 1024
BUDGETS = (1.0, 0.5, 0.3, 0.2, 0.1)
RECORDS, TABLE, SUMMARY = "samples.jsonl", "samples.csv", "summary.json"
CHART, PICTURE = "speedup.png", "kept_tokens.png"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@exit_codes(PROGRAM)
def main(argv: Sequence[str], size: "Architecture | None" = None, visual_tokens: int = VISUAL_TOKENS) -> int:
    """Run the suite.

    Args:
        argv: command line after the name of the suite.
        size: of the model with random weights; None: the demo's.
        visual_tokens: number of visual tokens that the photo is resized for.

    Returns:
        Exit code: 0; 1 for a wrong result and, with ``--check``, a missed target or a disturbed run; 130 interrupted.
    """
    started = time.perf_counter()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.check and CHECKED_BUDGET not in args.budgets:
        parser.error(f"argument --check: it looks at budget {CHECKED_BUDGET}, which is not among --budgets")
    try:
        photo = read_photo(args.image)
    except ValueError as error:
        parser.error(f"argument --image: {error}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        # What an earlier run made of its records must not lie beside the records of this one.
        for name in (SUMMARY, CHART, PICTURE):
            (args.out / name).unlink(missing_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")

    import huggingface_hub
    import transformers

    from bench.models import DEMO
    from bench.prompt import Request
    from bench.subject import load_subjects

    transformers.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    console = Console(highlight=False)
    sizes = [*(args.sizes or [visual_tokens]), *args.long]
    requests = [Request(size, args.batch, args.images, args.frames) for size in sizes]
    try:
        with console.status("loading the model"):
            subjects = load_subjects(
                photo, requests, args.model or size or DEMO, args.selector, args.device, DTYPES[args.dtype],
                args.attention, SEED, pack=not args.no_packing,
            )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    facts = {"suite": "prefill", "model": subjects[0].description, **environment(args.device)}
    facts |= {
        "dtype": args.dtype,
        "attention": args.attention,
        "packed": subjects[0].packed,
        "seed": SEED,
        "rounds": args.rounds,
    }
    facts |= {"long": args.long, "budgets": args.budgets, "prompts": [str(request) for request in requests]}
    missed: list[str] = []
    with Recorder(args.out / RECORDS, facts) as recorder:
        _print_header(console, subjects, facts, args.image)
        if recorder.resumed:
            console.print(recorder.resumed, style="dim")
        results = [_measure(subject, args, recorder, console) for subject in subjects]
        recorder.finish()

    by_prompt = {}
    for subject, (records, kept) in zip(subjects, results, strict=True):
        rows = summarise(records)
        if args.check:
            found = share_failures(rows) if subject.request.size in args.long else failures(rows)
            missed += [f"{subject.request}: {sentence}" for sentence in found]
        by_prompt[str(subject.request)] = rows
        if subject is subjects[0]:
            _draw(args.out, subject, photo, facts, rows, kept)
        if args.trace:
            _write_traces(args.out, subject, [row.budget for row in rows])
    write_csv(args.out / TABLE, load(args.out / RECORDS))
    outcome = {"missed": missed, "peak_memory": peak_memory(args.device), "seconds": time.perf_counter() - started}
    first, *others = by_prompt.values()
    tables = {"budgets": [row._asdict() for row in first]}
    if others:
        tables["by_prompt"] = {prompt: [row._asdict() for row in rows] for prompt, rows in by_prompt.items()}
    (args.out / SUMMARY).write_text(json.dumps({**facts, **tables, **outcome}, indent=2) + "\n")
    _print_results(console, subjects[0], by_prompt, {**facts, **outcome})
    return ending(PROGRAM, console, sorted(args.out.iterdir()), missed, args.check)


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a photo (default: one that scikit-image carries)")
    parser.add_argument(
        "--model", type=_weights, metavar="DIR_OR_HUB_ID", help="Qwen2-VL or Qwen2.5-VL weights (default: random)"
    )
    parser.add_argument(
        "--selector", type=_weights, metavar="DIR_OR_HUB_ID", help="a trained selector (default: an untrained one)"
    )
    parser.add_argument("--device", type=device_argument, default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument(
        "--budgets", type=budget, nargs="+", default=BUDGETS, metavar="SHARE",
        help=f"shares of visual tokens kept (default: {' '.join(map(str, BUDGETS))}); 1.0, the baseline, always runs",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=_size, nargs="+", metavar="N_OR_WxH",
        help=f"of an image or frame: visual tokens, or pixels such as 3840x2160 (default: {VISUAL_TOKENS})",
    )  # fmt: skip
    parser.add_argument(
        "--long", type=_size, nargs="+", default=[], metavar="N_OR_WxH",
        help=f"further sizes, for which a call takes minutes: one round of 100% and {CHECKED_BUDGET:.0%}, and the ViT "
        "runs once; --check looks at their selection (default: none)".replace("%", "%%"),
    )  # fmt: skip
    parser.add_argument("--images", type=count, default=1, metavar="N", help="images of a prompt (default: 1)")
    parser.add_argument("--frames", type=_frames, default=0, metavar="N", help="of one video in place of images")
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="prompts of a call (default: 1)")
    parser.add_argument(
        "--attention", default="sdpa", metavar="NAME",
        help="the model's implementation: sdpa, flash_attention_2, eager, or another of transformers (default: sdpa)",
    )  # fmt: skip
    parser.add_argument(
        "--no-packing", action="store_true",
        help="leave the model's linear layers to PyTorch, which on a CPU packs their weights again at every call "
        "(default: they are packed once, where device and dtype allow)",
    )  # fmt: skip
    parser.add_argument(
        "--trace", action="store_true", help="write a profiler trace of one call at each budget, for ui.perfetto.dev"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="runs of each budget (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("out/prefill"), metavar="DIR", help="default: out/prefill")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 when a target is missed, or the run is too disturbed to tell"
    )
    return parser


def _weights(text: str) -> str:
    looks_like_a_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_a_path and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such directory: {text}")
    return text


def _size(text: str) -> int | tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of visual tokens, or WIDTHxHEIGHT in pixels")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _frames(text: str) -> int:
    if not text.isdecimal() or int(text) < 2 or int(text) % 2:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected an even number >= 2: a visual token is two frames deep"
        )
    return int(text)


def _print_header(console: Console, subjects: "list[Subject]", facts: dict[str, Any], image: Path | None) -> None:
    _, rows, columns = subjects[0].grids[0]
    held = [(f"{subject.request}", f"{sum(subject.lengths):,} visual tokens") for subject in subjects]
    prompts = "; ".join(tokens if request == tokens else f"{request}: {tokens}" for request, tokens in held)
    lines = {
        "model": f"{subjects[0].description}; attention {facts['attention']}"
        f"{', linear layers packed once' if facts['packed'] else ''}",
        "photo": f"{image or 'astronaut (scikit-image)'}, {columns * PATCH} x {rows * PATCH} pixels for the model",
        "prompts": prompts,
        "machine": f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['memory_gib']} GiB; "
        f"device {facts['device']}, {facts['dtype']}, seed {facts['seed']}",
        "versions": f"torch {facts['torch']}, transformers {facts['transformers']}, python {facts['python']}, "
        f"vs_kernels {facts['vs_kernels']}, its CPU kernels: {facts['cpu_kernels']}",
    }
    for name, text in lines.items():
        console.print(f"{name:9}{text}", soft_wrap=True, markup=False)
    console.print()


def _measure(
    subject: "Subject", args: argparse.Namespace, recorder: Recorder, console: Console
) -> tuple[list[dict[str, Any]], dict[float, Tensor]]:
    """The records of all calls, and by budget the tokens kept: bool [rows, columns]."""
    from bench.prefill_run import samples
    from bench.prefill_stages import encoded_once, timed_prefill

    is_long = subject.request.size in args.long
    budgets = sorted({1.0, *([CHECKED_BUDGET] if is_long else args.budgets)}, reverse=True)
    rounds = 1 if is_long else args.rounds
    clock = Clock(args.device)
    prompt = str(subject.request)
    records: list[dict[str, Any]] = []
    kept: dict[float, Tensor] = {}
    encoded: list[Any] = []
    for record in [record for record in recorder.records if record["record"] == "sample"]:
        if record["prompt"] == prompt:
            records.append(record)
            kept[record["budget"]] = _unpacked(record["kept"], sum(subject.lengths))
    known = {(record["round"], record["budget"]) for record in records}
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar as progress, contextlib.ExitStack() as stack:
        task = progress.add_task("first call, without selector", total=1 + rounds * len(budgets))
        if is_long:
            stack.enter_context(encoded_once(subject.model, encoded))
        unpatched = timed_prefill(subject.model, subject.inputs, clock)
        recorder.write("unpatched", prompt=prompt, **_seconds(unpatched))
        console.print(f"the model alone, first call: {unpatched.total.wall:.2f} s end to end", style="dim")
        progress.update(task, advance=1 + len(records), description=f"round 1 of {rounds}")
        chosen = samples(subject, unpatched, budgets, rounds, clock, encoded, lambda *key: key in known)
        for sample in chosen:
            kept[sample.budget] = sample.kept
            prefill = sample.prefill.encoded_as(unpatched) if is_long else sample.prefill
            record = {
                "prompt": prompt,
                "round": sample.round,
                "budget": sample.budget,
                "visual_tokens": int(sample.kept.sum()),
                "sequence_length": prefill.sequence_length,
                "kv_cache_bytes": prefill.kv_cache_bytes,
                "peak_bytes": sample.peak_bytes,
                **_seconds(prefill),
                "own_wall_s": sample.own.wall,
                "own_process_s": sample.own.process,
            }
            if sample.moved:
                record["logits_moved"] = sample.moved
            if sample.alone is not None:
                record |= {"alone_wall_s": sample.alone.wall, "alone_process_s": sample.alone.process}
            recorder.write("sample", **record, kept=_packed(sample.kept))
            records.append(record)
            progress.update(task, advance=1, description=f"round {len(records) // len(budgets) + 1} of {rounds}")
            if len(records) % len(budgets) == 0:
                times = {record["budget"]: record["total_wall_s"] for record in records[-len(budgets) :]}
                line = ", ".join(f"{times[budget]:.2f}" for budget in sorted(times, reverse=True))
                console.print(f"round {sample.round} of {rounds}: {line} s end to end", style="dim")
    console.print("verified: tokens kept, sequence lengths; logits at 100% equal to the model's alone, bit for bit\n")
    for record in records:
        if moved := record.get("logits_moved"):
            console.print(
                f"round {record['round']}: logits at 100% were up to {moved:.3g} from the model's first call; both "
                "calls were made again and agreed bit for bit\n",
                style="yellow",
            )
    return records, kept


def _packed(kept: Tensor) -> str:
    """A mask as hexadecimal digits."""
    return f"{int(''.join(map(str, kept.int().tolist())), 2):x}"


def _unpacked(digits: str, length: int) -> Tensor:
    return torch.tensor([digit == "1" for digit in f"{int(digits, 16):0{length}b}"])


def _write_traces(out: Path, subject: "Subject", budgets: Sequence[float]) -> None:
    from bench.prefill_stages import write_trace
    from vs_kernels.integrations.transformers import attach_selector

    with attach_selector(subject.model, subject.selector) as handle:
        for budget in budgets:
            handle.budget = budget
            path = out / f"trace-{sum(subject.lengths)}-{budget:.0%}.json.gz".replace("%", "")
            write_trace(path, subject.model, subject.inputs, subject.inputs["input_ids"].device)


def _seconds(prefill: "Prefill") -> dict[str, float]:
    return {
        f"{stage}_{kind}_s": getattr(getattr(prefill, stage), kind) for stage in STAGES for kind in ("wall", "process")
    }


def _print_results(
    console: Console, subject: "Subject", by_prompt: dict[str, list[Row]], summary: dict[str, Any]
) -> None:
    for prompt, rows in by_prompt.items():
        if len(by_prompt) > 1:
            console.print(prompt, style="bold")
        console.print(table(rows))
        if disturbed := noise(rows):
            console.print(f"Disturbed: {disturbed}.", style="bold red")
    console.print(
        f"Medians of {summary['rounds']} interleaved rounds. Speed-ups are against budget 100%. Ideal: nothing between "
        "ViT and LLM, and the LLM's time in proportion to its sequence. Of as many tokens of text: time of the model "
        "alone on a prompt of the same length over the time here. Between ViT and LLM: all that is neither. Selection: "
        "what it adds to what the model alone takes there, measured beside every call.",
        style="dim",
    )
    if subject.caveat:
        console.print(subject.caveat, style="bold yellow")
    peaks = ", ".join(f"{size / 2**30:.1f} GiB {name}" for name, size in summary["peak_memory"].items())
    console.print(f"\n{summary['seconds']:.0f} s in all; peak memory: {peaks}")


def _draw(
    out: Path, subject: "Subject", photo: Image.Image, facts: dict[str, Any], rows: list[Row], kept: dict[float, Tensor]
) -> None:
    from bench.figures import Line, draw_kept_tokens, draw_speedups

    base = rows[0]
    shown = next((row for row in rows if row.budget == CHECKED_BUDGET), rows[-1])

    def llm_ideal(budget: float) -> float:
        dropped = base.visual_tokens - SelectionPlan.from_budget([base.visual_tokens], budget).total_kept
        return base.sequence_length / (base.sequence_length - dropped / subject.request.batch)

    def end_to_end_ideal(budget: float) -> float:
        # the table's at the measured budgets
        measured = sorted((row.budget, row.wall["vit"]) for row in rows)
        return total_ideal(base.wall, float(np.interp(budget, *zip(*measured, strict=True))), llm_ideal(budget))

    draw_speedups(
        out / CHART,
        f"LLM prefill {shown.llm_speedup:.1f}x faster with {shown.budget:.0%} of the visual tokens",
        [
            subject.description,
            f"{base.visual_tokens:,} visual tokens, {facts['dtype']}, {facts['cpu']}, {facts['threads']} threads, "
            f"device {facts['device']}; medians of {facts['rounds']} interleaved rounds",
            "Dashed, the ideal: nothing between ViT and LLM, and the LLM's time in proportion to its sequence.",
            *(["Disturbed by other programs: repeat it on a quiet machine."] if noise(rows) else []),
        ],
        [row.budget for row in rows],
        [
            Line("LLM prefill", "#2563eb", (-20, 12), [row.llm_speedup for row in rows], llm_ideal),
            Line("end to end", "#d9480f", (-12, -17), [row.total_speedup for row in rows], end_to_end_ideal),
        ],
    )
    _, height, width = subject.grids[0]
    seen = photo.resize((width * PATCH, height * PATCH), Image.Resampling.BICUBIC)
    masks = {row.budget: kept[row.budget][: height * width].view(height, width) for row in rows}
    caption = subject.caveat or "Kept by the trained selector."
    draw_kept_tokens(out / PICTURE, "Visual tokens kept, by retention budget", caption, seen, masks, PATCH)
