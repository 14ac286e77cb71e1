"""A vLLM server under load, with and without selection: throughput, time to the first token, KV cache."""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness import Arguments, Recorder, environment, interleaved
from bench.photo import PATCH, read_photo
from vs_kernels.integrations.vllm import vllm_version
from vs_kernels.plan import SelectionPlan, check_budget

PROGRAM = "python -m bench serve"
SEED = 0
BUDGET = 0.2
VISUAL_TOKENS = 576
NEW_TOKENS = 16
CONCURRENCY = (1, 4, 16)
RECORDS, SUMMARY, CHART = "samples.jsonl", "summary.json", "serving.png"


class WrongResult(Exception):
    """A server read other tokens than it should have; no time of it counts."""


def main(argv: Sequence[str]) -> int:
    """Run the suite.

    Returns:
        Exit code: 0; 1 for a wrong result and, with ``--check``, a missed target; 130 interrupted.
    """
    started = time.perf_counter()
    parser = _parser()
    args = parser.parse_args(argv)
    if vllm_version() == "unknown":
        parser.error("it needs vLLM, which is not in this environment; `make test-vllm` makes one, .venv-vllm")
    try:
        photo = read_photo(args.image)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    from rich.console import Console

    from bench import serve_load, serve_model, serve_summary
    from bench.serve_server import serve

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    facts: dict[str, Any] = environment(torch.device("cpu")) | {"vllm": vllm_version(), "seed": SEED}
    facts |= {"budget": args.budget, "visual_tokens": VISUAL_TOKENS, "new_tokens": NEW_TOKENS, "rounds": args.rounds}
    side = int(VISUAL_TOKENS**0.5) * PATCH
    loads: dict[tuple[str, int], list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder, Recorder(args.out / RECORDS) as recorder:
        recorder.write("run", **facts)
        model = Path(folder) / "model"
        serve_model.save(model, VISUAL_TOKENS, SEED)
        options = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-batched-tokens", "1024"]
        options += ["--max-num-seqs", "16", "--limit-mm-per-prompt", '{"image": 1, "video": 0}']
        # Every request brings an image of its own; a cache would only serve the repetition that a benchmark is.
        options += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
        setting = {"vs_kernels": {"selector": str(model / "selector"), "budget": args.budget}}
        with contextlib.ExitStack() as servers, console.status("starting the servers") as status:
            try:
                addresses = {
                    serve_summary.PLAIN: servers.enter_context(serve(model, args.out / "plain.log", *options)),
                    serve_summary.SELECTING: servers.enter_context(
                        serve(
                            model,
                            args.out / "selecting.log",
                            *options,
                            "--additional-config",
                            json.dumps(setting),
                        )
                    ),
                }
                dropped = _dropped(args.budget)
                number = 0

                def bodies(count: int) -> list[dict[str, Any]]:
                    """Requests with photos that were in no request before: another pixel in the corner."""
                    nonlocal number
                    made = []
                    for _ in range(count):
                        number += 1
                        image = photo.resize((side, side))
                        image.paste((number % 256, number // 256 % 256, 0), (0, 0, 16, 16))
                        made.append(serve_load.body(image, NEW_TOKENS))
                    return made

                for server, address in addresses.items():
                    _check(server, serve_load.run(address, bodies(2), 1), dropped)
                for concurrency in args.concurrency:
                    count = max(args.requests, 2 * concurrency)
                    cases = {
                        server: lambda address=address, clients=concurrency, count=count: serve_load.run(
                            address, bodies(count), clients
                        )
                        for server, address in addresses.items()
                    }
                    for turn, server, load in interleaved(cases, args.rounds):
                        _check(server, load, dropped)
                        loads.setdefault((server, concurrency), []).append(load)
                        replies = [reply._asdict() for reply in load.replies]
                        fields = {"server": server, "concurrency": concurrency, "round": turn}
                        recorder.write("load", **fields, seconds=load.seconds, replies=replies)
                        status.update(f"{concurrency} clients, round {turn} of {args.rounds}, {server}")
            except WrongResult as error:
                print(f"{PROGRAM}: wrong result, so no times: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"{PROGRAM}: interrupted; what was measured is in {recorder.path}", file=sys.stderr)
                return 130

    rows = serve_summary.summarise(loads)
    missed = serve_summary.failures(rows) if args.check else []
    notes = [
        f"vLLM {facts['vllm']} on {facts['cpu']}, {facts['cores']} cores; a random Qwen2.5-VL, float32, "
        f"{VISUAL_TOKENS} visual tokens",
        f"a request: one photo, one question, {NEW_TOKENS} tokens back; {args.rounds} interleaved rounds, both servers "
        "in one run",
    ]
    serve_summary.draw(args.out / CHART, rows, args.budget, notes)
    summary = {**facts, "rows": [row._asdict() for row in rows], "missed": missed}
    summary["seconds"] = time.perf_counter() - started
    (args.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print()
    console.print(serve_summary.table(rows, args.budget))
    console.print("First token and answer: medians, seconds since the request; KV tokens: per request.", style="dim")
    console.print(f"\n{summary['seconds']:.0f} s in all")
    for name in (CHART, RECORDS, SUMMARY):
        console.print(f"  {args.out / name}", soft_wrap=True)
    for sentence in missed:
        print(f"{PROGRAM}: check failed: {sentence}", file=sys.stderr)
    return 1 if missed else 0


def _dropped(budget: float) -> int:
    """How many tokens shorter a prompt is with selection than without."""
    plan = SelectionPlan.from_budget([VISUAL_TOKENS], budget)
    return plan.total_tokens - plan.total_kept


def _check(server: str, load: Any, dropped: int) -> None:
    """Every prompt of a server has the length it must have."""
    from bench.serve_load import QUESTION
    from bench.serve_summary import SELECTING

    text = len(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n".encode())
    # Each mark is one token, and two stand around the image.
    for mark in ("<|im_start|>", "<|im_start|>", "<|im_end|>"):
        text -= len(mark) - 1
    expected = text + 2 + VISUAL_TOKENS - (dropped if server == SELECTING else 0)
    for reply in load.replies:
        if (reply.prompt_tokens, reply.new_tokens) != (expected, NEW_TOKENS):
            raise WrongResult(
                f"{server}: a prompt of {reply.prompt_tokens} tokens with {reply.new_tokens} new ones, expected "
                f"{expected} and {NEW_TOKENS}"
            )


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a photo (default: one that scikit-image carries)")
    parser.add_argument("--budget", type=_budget, default=BUDGET, metavar="SHARE", help=f"default: {BUDGET}")
    parser.add_argument(
        "--concurrency", type=_count, nargs="+", default=CONCURRENCY, metavar="N",
        help=f"clients at once (default: {' '.join(map(str, CONCURRENCY))})",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=_count, default=12, metavar="N", help="per round, at least twice the clients (default: 12)"
    )
    parser.add_argument("--rounds", type=_count, default=2, metavar="N", help="runs of each server (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("out/serve"), metavar="DIR", help="default: out/serve")
    parser.add_argument("--check", action="store_true", help="exit with 1 where selection serves fewer requests")
    return parser


def _budget(text: str) -> float:
    try:
        budget = float(text)
        check_budget(budget)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number in (0, 1]") from None
    return budget


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer >= 1")
    return int(text)
