"""Answers right after selection: a trained selector against training-free methods on small trained models."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from bench.command_line import ending, exit_codes
from bench.harness import Arguments, Recorder, environment, interleaved
from bench.results import load, write_csv

if TYPE_CHECKING:
    from bench.quality.evaluate import Row

PROGRAM = "python -m bench quality"
RECORDS, SUMMARY, TABLE, CHART, SHEET = "rows.jsonl", "summary.json", "rows.csv", "accuracy.png", "contact_sheet.png"
VALIDATION_SEED = 7
SHOWN_BUDGET, SHOWN_PICTURES = 0.1, 6
SHOWN = ("learned", "token norm", "attention received", "DivPrune")
STEP_ROUNDS, STEPS_A_ROUND = 3, 6


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run the suite.

    Returns:
        Exit code: 0; 1 with ``--check`` and a missed target; 130 interrupted.
    """
    started = time.perf_counter()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.check and args.tasks:
        parser.error("argument --check: it looks at all tasks, expected no --tasks")
    from bench.quality import digits, shapes

    tasks = [task for task in (*digits.TASKS, shapes.TASK) if not args.tasks or task.name in args.tasks]
    console = Console(highlight=False)
    if args.train:
        from bench.quality.train import TRAINERS

        for part in args.train:
            TRAINERS[part](console)
        return 0
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(args.out / RECORDS, _facts(args))
    except OSError as error:
        parser.error(f"argument --out: {error}")
    with recorder:
        missed = _evaluate(args, tasks, recorder, console)
        recorder.finish()
    write_csv(args.out / TABLE, load(args.out / RECORDS))
    console.print(f"\n{time.perf_counter() - started:.0f} s in all")
    return ending(PROGRAM, console, (args.out / name for name in (CHART, SHEET, SUMMARY, RECORDS)), missed, args.check)


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    facts = {"suite": "quality", **environment(torch.device("cpu"))}
    facts |= {"pictures": args.pictures, "validation_seed": VALIDATION_SEED, "tasks": args.tasks, "check": args.check}
    return facts


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=("clutter", "tiles", "shapes"), help="default: all")
    parser.add_argument(
        "--pictures", type=_number, default=1000, metavar="N", help="validation pictures of a task (default: 1000)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/quality"), metavar="DIR", help="default: out/quality")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument(
        "--train", nargs="+", choices=("backbones", "selectors", "comparison"), metavar="PART",
        help="make the shipped weights and tables again: backbones, selectors, comparison; resumable",
    )  # fmt: skip
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 50:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer >= 50")
    return int(text)


def _evaluate(args: argparse.Namespace, tasks: list[Any], recorder: Recorder, console: Console) -> list[str]:
    from bench.quality import methods
    from bench.quality.answering import make_features
    from bench.quality.evaluate import Row, evaluate, soft_accuracy
    from bench.quality.figures import draw_accuracy, draw_contact_sheet
    from bench.quality.shipped import DEFAULT, LAST_NOISE, shipped_backbone, shipped_selectors
    from bench.quality.summary import LEARNED, ORACLE, SOFT, StepTimes, failures, table

    if recorder.resumed:
        console.print(f"resumed  {recorder.resumed}")
    by_task: dict[str, list[Row]] = {}
    soft_accuracies: dict[str, float] = {}
    sheet: dict[str, Any] = {}
    step_times = None
    for task in tasks:
        backbone = shipped_backbone(task)
        with console.status(f"{task.title}: encoding {args.pictures:,} pictures"):
            features = make_features(backbone, task, "validation", args.pictures, VALIDATION_SEED)
        selectors = shipped_selectors(task, DEFAULT)
        chosen = {
            ORACLE: [methods.oracle],
            LEARNED: [methods.learned(selector) for selector in selectors],
            SOFT: [methods.learned(selector) for selector in shipped_selectors(task, "soft")],
            "random": [methods.random(seed) for seed in methods.RANDOM_SEEDS],
            **{name: [method] for name, method in methods.TRAINING_FREE.items()},
        }
        by_task[task.name] = rows = []
        with console.status("") as status:
            known = partial(_known_row, recorder, task.name)
            for row in evaluate(backbone, task, features, chosen, at={SOFT: (0.2, 0.1)}, known=known):
                if not known(row.method, row.budget):
                    recorder.write("row", **row._asdict())
                rows.append(row)
                status.update(f"{task.title}: {row.method} at {row.budget:.0%}")
        console.print(table(task.title[0].upper() + task.title[1:], rows))
        soft = recorder.find("soft", task=task.name) or recorder.write(
            "soft",
            task=task.name,
            accuracies=[soft_accuracy(backbone, task, features, each, 0.2, LAST_NOISE) for each in selectors],
        )
        soft_accuracies[task.name] = statistics.mean(soft["accuracies"])
        if not sheet or task.name == "tiles":
            sheet = {"features": features[:SHOWN_PICTURES], "methods": chosen, "title": task.title}
        if args.check and task.name == "tiles":
            found = recorder.find("steps") or recorder.write("steps", seconds=_step_times(backbone, task, features))
            step_times = found["seconds"]
    notes = (
        f"{args.pictures:,} validation pictures a task, contents and photos unseen in training; error bars: one "
        f"standard error. Learned: {len(selectors)} seeds, trained at 20 %."
    )
    draw_accuracy(args.out / CHART, {task.name: task.title for task in tasks}, by_task, notes)
    shown: dict[str, torch.Tensor] = {}
    for name in SHOWN:
        indices = sheet["methods"][name][0](sheet["features"], SHOWN_BUDGET)
        shown[name] = torch.zeros_like(sheet["features"].batch.relevant).scatter_(1, indices, True)
    draw_contact_sheet(
        args.out / SHEET,
        f"What is kept at {SHOWN_BUDGET:.0%}: {sheet['title']}",
        "Framed: the tokens that the answers are in. These are the first pictures of the validation set.",
        sheet["features"].batch.pictures,
        shown,
        sheet["features"].batch.relevant,
    )
    missed: list[str] = []
    if args.check:
        assert step_times is not None
        missed = failures(by_task, soft_accuracies, StepTimes(*step_times))
    summary = _facts(args) | {
        "rows": [row._asdict() for rows in by_task.values() for row in rows],
        "soft_accuracies": soft_accuracies,
        "soft_temperature": LAST_NOISE,
        "step_seconds": step_times and dict(zip(("soft", DEFAULT), step_times, strict=True)),
        "missed": missed,
    }
    (args.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    console.print(
        "Share of the answers that are right, ± its standard error, and recall, the share of the relevant tokens that "
        "is kept. Underlined: the best method without training. "
        f"{len(selectors)} seeds of learned, {len(methods.RANDOM_SEEDS)} of random.",
        style="dim",
    )
    return missed


def _known_row(recorder: Recorder, task: str, method: str, budget: float) -> "Row | None":
    from bench.quality.evaluate import Row

    found = recorder.find("row", task=task, method=method, budget=budget)
    return found and Row(**{name: found[name] for name in Row._fields})


def _step_times(backbone: torch.nn.Module, task: Any, features: Any) -> tuple[float, float]:
    """Process seconds of a training step, soft and default recipe, medians of interleaved rounds on these features."""
    from bench.quality.recipes import train_selector
    from bench.quality.shipped import DEFAULT

    cases = {
        recipe: partial(train_selector, backbone, task, features, recipe, seed=0, steps=STEPS_A_ROUND)
        for recipe in ("soft", DEFAULT)
    }
    seconds: dict[str, list[float]] = {recipe: [] for recipe in cases}
    for _, recipe, trained in interleaved(cases, STEP_ROUNDS):
        seconds[recipe].append(trained.step_seconds)
    return statistics.median(seconds["soft"]), statistics.median(seconds[DEFAULT])
