"""Every model family against every kind of prompt, decoding and cache: passes, or the reason why not."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench import family_checks as checks
from bench.command_line import ending, exit_codes
from bench.harness import Arguments, Recorder, environment
from bench.tiny_families import FAMILIES

PROGRAM = "python -m bench families"
RECORDS, TABLE = "cells.jsonl", "cells.md"
IMAGES = ([5, "image", 4], [3, "image", 2])
MANY = ([5, "image", 3, "image", 4], [6, "image", 2])
VIDEOS = ([5, "video", 3], [2, "video", 4])
MIXED = ([5, "image", 3, "video", 4], [4, "video", 2, "image", 3])

Row = dict[str, tuple[str, bool]]
CELLS: dict[str, Callable[[checks.Subject], None]] = {
    "image batch": lambda subject: checks.check_forward(subject, *IMAGES),
    "several images": lambda subject: checks.check_forward(subject, *MANY),
    "video": lambda subject: checks.check_forward(subject, *VIDEOS),
    "image and video": lambda subject: checks.check_forward(subject, *MIXED),
    "text only": checks.check_text_only,
    "labels, training": lambda subject: checks.check_training(subject, MANY),
    "greedy": lambda subject: checks.check_generate(subject, MANY),
    "sampling": lambda subject: checks.check_generate(subject, MANY, do_sample=True),
    "beams": lambda subject: checks.check_beams(subject, IMAGES),
    "beams, several images": lambda subject: checks.check_beams(subject, MANY),
    "greedy, video": lambda subject: checks.check_generate(subject, VIDEOS),
    "beams, video": lambda subject: checks.check_beams(subject, VIDEOS),
    "assisted": lambda subject: checks.check_assisted(subject, MANY[0]),
    "dynamic cache": lambda subject: checks.check_cached(subject, MANY, static=False),
    "static cache": lambda subject: checks.check_cached(subject, MANY, static=True),
    "chunked prefill": lambda subject: checks.check_generate(subject, MANY, prefill_chunk_size=16),
}
FRAMES_ARE_IMAGES = {"InternVL": "frames of a video are images", "SmolVLM": "frames of a video are images"}
VIDEO_CELLS = ("video", "image and video", "greedy, video", "beams, video")
# What a model cannot do by itself; the call that shows it raises without a selector, too.
ALONE: dict[str, Callable[[checks.Subject], object]] = {
    "image and video": lambda subject: subject.model(**subject.prompt(*MIXED)),
    "beams, several images": lambda subject: checks.check_beams_alone(subject, MANY),
    "beams, video": lambda subject: subject.model.generate(**subject.prompt(*VIDEOS), num_beams=2, max_new_tokens=2),
    "assisted": lambda subject: subject.model.generate(
        **subject.prompt(*MANY[:1]), prompt_lookup_num_tokens=2, max_new_tokens=2
    ),
}
SAME_PLACEHOLDER = "not in transformers: videos have the placeholder of images"
REASONS = {
    (name, cell): reason
    for names, cell, reason in (
        (("GLM-4V", "GLM-4.5V", "GLM-4.6V"), "image and video", SAME_PLACEHOLDER),
        (("GLM-4V", "GLM-4.5V", "GLM-4.6V"), "beams, video", SAME_PLACEHOLDER),
        (
            ("GLM-4V", "GLM-4.5V", "GLM-4.6V"),
            "beams, several images",
            "not in transformers: it repeats the images of a row in another order",
        ),
        (("Qwen3.5", "Qwen3.5 MoE", "Qwen4-Exp"), "assisted", "not in transformers: recurrent"),
    )
    for name in names
}


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 with ``--check`` where a cell is not what was promised; 130 interrupted."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    names, cells = args.family or list(FAMILIES), args.cell or list(CELLS)
    facts = {"suite": "families", **environment(torch.device("cpu")), "families": names, "cells": cells}
    with Recorder(args.out / RECORDS, facts) as recorder, console.status("") as status:
        if recorder.resumed:
            console.print(f"resumed  {recorder.resumed}")
        rows = []
        for name in names:
            status.update(name)
            rows.append((name, _row(name, cells, recorder)))
        recorder.finish()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    _print(console, rows, versions)
    (args.out / TABLE).write_text(_markdown(rows, versions))
    console.print(f"{versions}, {time.perf_counter() - started:.0f} s")
    missed = [f"{name}, {cell}: {text}" for name, row in rows for cell, (text, promised) in row.items() if not promised]
    return ending(PROGRAM, console, (args.out / RECORDS, args.out / TABLE), missed, args.check)


def _row(name: str, cells: Sequence[str], recorder: Recorder) -> Row:
    """By cell, what to print, and whether it is what was promised."""
    subject = None
    results: Row = {}
    for cell in cells:
        found = recorder.find("cell", family=name, cell=cell)
        if found is None:
            subject = subject or checks.Subject(FAMILIES[name])
            text, promised = _result(name, cell, subject)
            found = recorder.write("cell", family=name, cell=cell, result=text, as_promised=promised)
        results[cell] = found["result"], found["as_promised"]
    return results


def _result(name: str, cell: str, subject: checks.Subject) -> tuple[str, bool]:
    reason = reason_of(name, cell)
    if reason is not None and cell in VIDEO_CELLS and FAMILIES[name].videos is None:
        return reason, True
    if reason is not None:
        if checks.error_of(ALONE[cell], subject) is None:
            return f"the model alone can do it, expected: {reason}", False
        return reason, True
    error = checks.error_of(CELLS[cell], subject)
    return ("ok", True) if error is None else (f"{type(error).__name__}: {error}"[:300], False)


def reason_of(name: str, cell: str) -> str | None:
    """Why a family cannot do what a cell asks; None where it must pass."""
    if cell in VIDEO_CELLS and FAMILIES[name].videos is None:
        return FRAMES_ARE_IMAGES.get(name, "no video")
    return REASONS.get((name, cell))


def _print(console: Console, rows: Sequence[tuple[str, Row]], versions: str) -> None:
    table = Table(title=f"Selection in every family ({versions})", title_justify="left", header_style="bold")
    table.add_column("family", no_wrap=True)
    for cell in rows[0][1]:
        table.add_column(cell)
    notes: list[str] = []
    for name, results in rows:
        table.add_row(name, *(_short(text, promised, notes) for text, promised in results.values()))
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f"({number}) {note}")


def _short(text: str, promised: bool, notes: list[str]) -> str:
    if not promised or text == "ok":
        return "ok" if promised else "FAILS"
    if text not in notes:
        notes.append(text)
    return f"({notes.index(text) + 1})"


def _markdown(rows: Sequence[tuple[str, Row]], versions: str) -> str:
    cells, notes = list(rows[0][1]), list[str]()
    lines = ["| | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    for name, results in rows:
        lines.append(
            f"| {name} | " + " | ".join(_short(text, promised, notes) for text, promised in results.values()) + " |"
        )
    return "\n".join([*lines, "", *(f"({i}) {note}  " for i, note in enumerate(notes, 1)), versions]) + "\n"


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    parser.add_argument("--cell", action="append", choices=CELLS, help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("out/families"), metavar="DIR", help="default: out/families")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a cell is not as promised")
    return parser
