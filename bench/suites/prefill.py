"""Prefill of a Qwen2.5-VL model on a photo, at several retention budgets: the demo."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from bench.harness import Arguments, Clock, Recorder, device_argument, environment, interleaved, peak_memory
from bench.photo import PATCH, read_photo
from bench.prefill_summary import CHECKED_BUDGET, STAGES, Row, failures, summarise, table, total_ideal
from vs_kernels.plan import SelectionPlan, check_budget

if TYPE_CHECKING:  # transformers takes seconds to import, for which a mistyped argument should not wait
    from bench.models import Architecture
    from bench.prefill_stages import Prefill
    from bench.subject import Subject

PROGRAM = "python -m bench prefill"
SEED = 0
VISUAL_TOKENS = 1024
BUDGETS = (1.0, 0.5, 0.3, 0.2, 0.1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WrongResult(Exception):
    """A call did not give what it must, so its time is worth nothing."""


def main(argv: Sequence[str], size: "Architecture | None" = None, visual_tokens: int = VISUAL_TOKENS) -> int:
    """Run the suite.

    Args:
        argv: command line after the name of the suite.
        size: of the model with random weights; None: the demo's.
        visual_tokens: number of visual tokens that the photo is resized for.

    Returns:
        Exit code: 0; 1 for a wrong result, or a missed target with ``--check``; 130 when interrupted.
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
        recorder = Recorder(args.out / "samples.jsonl")
    except OSError as error:
        parser.error(f"argument --out: {error}")

    console = Console(highlight=False)
    with recorder:
        try:
            with console.status("loading the model"):
                subject = _load(args, photo, size, visual_tokens)
        except (OSError, TypeError, ValueError) as error:
            parser.error(str(error).strip().partition("\n")[0])
        facts = environment(args.device) | {"dtype": args.dtype, "seed": SEED, "rounds": args.rounds}
        recorder.write("run", model=subject.description, **facts)
        _print_header(console, subject, facts, args)
        try:
            samples, kept = _measure(subject, args, recorder, console)
        except WrongResult as error:
            print(f"{PROGRAM}: wrong result, so no times: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{PROGRAM}: interrupted; what was measured is in {recorder.path}", file=sys.stderr)
            return 130

    rows = summarise(samples)
    _draw(args.out, subject, photo, facts, rows, kept)
    missed = failures(rows) if args.check else []
    peak = peak_memory(args.device)
    seconds = time.perf_counter() - started
    summary = {"model": subject.description, **facts, "budgets": [row._asdict() for row in rows]}
    summary |= {"missed": missed, "peak_memory": peak, "seconds": seconds}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    console.print(table(rows))
    console.print(
        f"Medians of {args.rounds} interleaved rounds. Speed-ups: against budget 100%. Ideal: selection is free, and "
        "the LLM's time in proportion to its sequence. Selection: all that is neither ViT nor LLM.",
        style="dim",
    )
    if subject.caveat:
        console.print(subject.caveat, style="bold yellow")
    memory = ", ".join(f"{name.partition('_')[0]} {size / 2**30:.1f} GiB" for name, size in peak.items())
    console.print(f"\npeak memory: {memory}; {seconds:.0f} s in all")
    for name in ("speedup.png", "kept_tokens.png", "samples.jsonl", "summary.json"):
        console.print(f"  {args.out / name}")
    for sentence in missed:
        print(f"{PROGRAM}: missed target: {sentence}", file=sys.stderr)
    return 1 if missed else 0


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a photo (default: one that scikit-image carries)")
    parser.add_argument("--model", metavar="DIR_OR_HUB_ID", help="Qwen2-VL or Qwen2.5-VL weights (default: random ones)")
    parser.add_argument("--selector", metavar="DIR_OR_HUB_ID", help="a trained selector (default: an untrained one)")
    parser.add_argument("--device", type=device_argument, default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument(
        "--budgets", type=_budget, nargs="+", default=BUDGETS, metavar="SHARE",
        help=f"shares of visual tokens to keep (default: {' '.join(map(str, BUDGETS))}); 1.0, the baseline, always runs",
    )  # fmt: skip
    parser.add_argument("--rounds", type=_rounds, default=3, metavar="N", help="runs of each budget (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("out/prefill"), metavar="DIR", help="default: out/prefill")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    return parser


def _budget(text: str) -> float:
    try:
        budget = float(text)
        check_budget(budget)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers in (0, 1]") from None
    return budget


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer >= 1")
    return int(text)


def _load(args: argparse.Namespace, photo: Image.Image, size: "Architecture | None", visual_tokens: int) -> "Subject":
    import transformers

    from bench.models import DEMO
    from bench.subject import load_subject

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = args.model or size or DEMO
    return load_subject(photo, visual_tokens, model, args.selector, args.device, DTYPES[args.dtype], SEED)


def _print_header(console: Console, subject: "Subject", facts: dict[str, Any], args: argparse.Namespace) -> None:
    rows, columns = subject.grid
    lines = {
        "model": subject.description,
        "photo": f"{args.image or 'astronaut (scikit-image)'}, {columns * PATCH} x {rows * PATCH} pixels for the "
        f"model: {rows * columns:,} visual tokens",
        "machine": f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['memory_gib']} GiB; "
        f"device {facts['device']}, {facts['dtype']}",
        "versions": ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "vs_kernels", "python")),
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:9}[/bold]{text}", soft_wrap=True)
    if subject.caveat:
        console.print(subject.caveat, style="bold yellow")


def _measure(
    subject: "Subject", args: argparse.Namespace, recorder: Recorder, console: Console
) -> tuple[list[dict[str, Any]], dict[float, Tensor]]:
    """The samples, and which tokens each budget kept: bool [rows, columns]."""
    from bench.prefill_stages import timed_prefill
    from vs_kernels.integrations.transformers import attach_selector

    budgets = sorted({1.0, *args.budgets}, reverse=True)
    clock = Clock(args.device)
    samples: list[dict[str, Any]] = []
    kept: dict[float, Tensor] = {}
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("the model without selector", total=1 + args.rounds * len(budgets))
        # Also the warm-up of everything that the first call makes.
        unpatched = timed_prefill(subject.model, subject.inputs, clock)
        recorder.write("unpatched", **_seconds(unpatched))
        progress.advance(task)

        with attach_selector(subject.model, subject.selector) as handle:

            def call(budget: float) -> "Prefill":
                progress.update(task, description=f"budget {budget:.0%}")
                handle.budget = budget
                prefill = timed_prefill(subject.model, subject.inputs, clock)
                kept[budget] = _kept(handle.last_selection["image"].indices, subject.grid)
                _verify(budget, prefill, kept[budget], unpatched)
                return prefill

            for number, budget, prefill in interleaved({b: partial(call, b) for b in budgets}, args.rounds):
                sample = {
                    "round": number,
                    "budget": budget,
                    "visual_tokens": int(kept[budget].sum()),
                    "sequence_length": prefill.sequence_length,
                    "kv_cache_bytes": prefill.kv_cache_bytes,
                    **_seconds(prefill),
                }
                recorder.write("sample", **sample)
                samples.append(sample)
                progress.advance(task)
                if len(samples) % len(budgets) == 0:
                    ends = sorted(((s["budget"], s["total_wall_s"]) for s in samples[-len(budgets) :]), reverse=True)
                    times = "   ".join(f"{b:.0%} {seconds:.2f} s" for b, seconds in ends)
                    progress.console.print(f"round {number} of {args.rounds}, end to end:   {times}", style="dim")
    console.print("Verified: every call read the right number of tokens; at 100% the logits are the unpatched model's.")
    return samples, kept


def _seconds(prefill: "Prefill") -> dict[str, float]:
    return {
        f"{stage}_{kind}_s": getattr(getattr(prefill, stage), kind) for stage in STAGES for kind in ("wall", "process")
    }


def _kept(indices: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """bool [rows, columns]: which tokens of the photo stayed; without indices all."""
    mask = torch.full((grid[0] * grid[1],), indices is None)
    if indices is not None:
        mask[indices.cpu()] = True
    return mask.view(grid)


def _verify(budget: float, prefill: "Prefill", kept: Tensor, unpatched: "Prefill") -> None:
    plan = SelectionPlan.from_budget([kept.numel()], budget)
    length = unpatched.sequence_length - plan.total_tokens + plan.total_kept
    if int(kept.sum()) != plan.total_kept:
        raise WrongResult(f"budget {budget:.0%} kept {int(kept.sum())} visual tokens, expected {plan.total_kept}")
    if prefill.sequence_length != length:
        raise WrongResult(f"budget {budget:.0%} made a sequence of {prefill.sequence_length}, expected {length}")
    if not prefill.logits.isfinite().all():
        raise WrongResult(f"budget {budget:.0%} gave logits that are not finite")
    if budget == 1.0 and not torch.equal(prefill.logits, unpatched.logits):
        difference = (prefill.logits - unpatched.logits).abs().max().item()
        raise WrongResult(f"budget 100% changed the logits by up to {difference:.3g}, expected those of the model alone")


def _draw(
    out: Path, subject: "Subject", photo: Image.Image, facts: dict[str, Any], rows: list[Row], kept: dict[float, Tensor]
) -> None:
    from bench.figures import Line, draw_kept_tokens, draw_speedups

    base, smallest = rows[0], rows[-1]
    shown = next((row for row in rows if row.budget == CHECKED_BUDGET), smallest)
    text_tokens = base.sequence_length - base.visual_tokens

    def llm_ideal(budget: float) -> float:
        return base.sequence_length / (text_tokens + base.visual_tokens * budget)

    draw_speedups(
        out / "speedup.png",
        f"LLM prefill {shown.llm_speedup:.1f}x faster with {shown.budget:.0%} of the visual tokens",
        [
            subject.description,
            f"{base.visual_tokens:,} visual tokens, {facts['dtype']}, {facts['cpu']}, {facts['threads']} threads, "
            f"device {facts['device']}; medians of {facts['rounds']} interleaved rounds",
            "Dashed, the ideal: selection is free, and the LLM's time in proportion to its sequence.",
        ],
        [row.budget for row in rows],
        [
            Line("LLM prefill", "#2563eb", (-20, 12), [row.llm_speedup for row in rows], llm_ideal),
            Line(
                "end to end", "#d9480f", (-12, -17), [row.total_speedup for row in rows],
                lambda budget: total_ideal(base.wall, llm_ideal(budget)),
            ),
        ],
    )  # fmt: skip
    height, width = subject.grid
    seen = photo.resize((width * PATCH, height * PATCH), Image.Resampling.BICUBIC)
    masks = {row.budget: kept[row.budget] for row in rows}
    caption = subject.caveat or f"Kept by the trained selector of {subject.description}."
    draw_kept_tokens(out / "kept_tokens.png", "Visual tokens kept, by retention budget", caption, seen, masks, PATCH)
