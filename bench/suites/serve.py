"""A vLLM server under load, with and without selection: throughput, time to the first token, KV cache."""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.command_line import count, ending, exit_codes
from bench.harness import Arguments, Recorder, environment
from bench.ops_verify import WrongResult
from bench.photo import PATCH, read_photo
from bench.results import load, write_csv
from vs_kernels.arguments import budget
from vs_kernels.integrations.vllm import vllm_version
from vs_kernels.plan import SelectionPlan

if TYPE_CHECKING:
    from bench.serve_load import Load

PROGRAM = "python -m bench serve"
SEED = 0
BUDGETS = (0.2,)
VISUAL_TOKENS = 576
NEW_TOKENS = 16
CONCURRENCY = (1, 4, 16)
RECORDS, TABLE, SUMMARY, CHART = "samples.jsonl", "samples.csv", "summary.json", "serving.png"


@exit_codes(PROGRAM)
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
    facts: dict[str, Any] = {"suite": "serve", **environment(torch.device("cpu")), "vllm": vllm_version(), "seed": SEED}
    facts |= {"budgets": args.budgets, "visual_tokens": VISUAL_TOKENS, "new_tokens": NEW_TOKENS, "rounds": args.rounds}
    facts |= {"concurrency": args.concurrency, "requests": args.requests}
    side = int(VISUAL_TOKENS**0.5) * PATCH
    budgets = {serve_summary.PLAIN: 1.0} | {serve_summary.name_of(one): one for one in args.budgets}
    with tempfile.TemporaryDirectory() as folder, Recorder(args.out / RECORDS, facts) as recorder:
        if recorder.resumed:
            console.print(f"resumed  {recorder.resumed}")
        model = Path(folder) / "model"
        serve_model.save(model, VISUAL_TOKENS, SEED)
        options = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-batched-tokens", "1024"]
        options += ["--max-num-seqs", "16", "--limit-mm-per-prompt", '{"image": 1, "video": 0}']
        # Every request brings an image of its own; a cache would only serve the repetition that a benchmark is.
        options += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
        setting = {"vs_kernels": {"selector": str(model / "selector"), "budget": args.budgets[0]}}
        with contextlib.ExitStack() as servers, console.status("starting the servers") as status:
            plain = servers.enter_context(serve(model, args.out / "plain.log", *options))
            # Requests bring their budgets.
            options += ["--additional-config", json.dumps(setting), "--trust-request-mm-kwargs"]
            selecting = servers.enter_context(serve(model, args.out / "selecting.log", *options))
            number = 0

            def bodies(count: int, share: float) -> list[dict[str, Any]]:
                """Requests with photos that were in no request before: another pixel in the corner."""
                nonlocal number
                made = []
                for _ in range(count):
                    number += 1
                    image = photo.resize((side, side))
                    image.paste((number % 256, number // 256 % 256, 0), (0, 0, 16, 16))
                    made.append(serve_load.body(image, NEW_TOKENS, None if share == 1 else share))
                return made

            def run(server: str, count: int, clients: int) -> serve_load.Load:
                share = budgets[server]
                address = plain if server == serve_summary.PLAIN else selecting
                made = serve_load.run(address, bodies(count, share), clients)
                _check(server, made, _dropped(share))
                return made

            for server in budgets:
                run(server, 2, 1)
            for concurrency in args.concurrency:
                for turn in range(1, args.rounds + 1):
                    for server in list(budgets)[:: 1 if turn % 2 else -1]:
                        key = {"server": server, "concurrency": concurrency, "round": turn}
                        if recorder.find("load", **key):
                            continue
                        status.update(f"{concurrency} clients, round {turn} of {args.rounds}, {server}")
                        made = run(server, max(args.requests, 2 * concurrency), concurrency)
                        replies = [reply._asdict() for reply in made.replies]
                        recorder.write("load", **key, seconds=made.seconds, replies=replies)
        recorder.finish()
        loads = serve_load.by_case(recorder.records)

    rows = serve_summary.summarise(loads)
    missed = serve_summary.failures(rows) if args.check else []
    notes = [
        f"vLLM {facts['vllm']} on {facts['cpu']}, {facts['cores']} cores; a random Qwen2.5-VL, float32, "
        f"{VISUAL_TOKENS} visual tokens",
        f"a request: one photo, one question, {NEW_TOKENS} tokens back; {args.rounds} interleaved rounds, all "
        "in one run",
    ]
    serve_summary.draw(args.out / CHART, rows, notes)
    write_csv(args.out / TABLE, load(args.out / RECORDS))
    summary = {**facts, "rows": [row._asdict() for row in rows], "missed": missed}
    summary["seconds"] = time.perf_counter() - started
    (args.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print()
    console.print(serve_summary.table(rows))
    console.print("First token and answer: medians, seconds since the request; KV tokens: per request.", style="dim")
    console.print(f"\n{summary['seconds']:.0f} s in all")
    return ending(PROGRAM, console, (args.out / name for name in (CHART, RECORDS, TABLE, SUMMARY)), missed, args.check)


def _dropped(budget: float) -> int:
    """How many tokens shorter a prompt is with selection than without."""
    plan = SelectionPlan.from_budget([VISUAL_TOKENS], budget)
    return plan.total_tokens - plan.total_kept


def _check(server: str, load: "Load", dropped: int) -> None:
    """Every prompt has the length it must have, shorter by the tokens that selection drops."""
    from bench.serve_load import QUESTION

    text = len(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n".encode())
    # Each mark is one token, and two stand around the image.
    for mark in ("<|im_start|>", "<|im_start|>", "<|im_end|>"):
        text -= len(mark) - 1
    expected = text + 2 + VISUAL_TOKENS - dropped
    for reply in load.replies:
        if (reply.prompt_tokens, reply.new_tokens) != (expected, NEW_TOKENS):
            raise WrongResult(
                f"{server}: a prompt of {reply.prompt_tokens} tokens with {reply.new_tokens} new ones, expected "
                f"{expected} and {NEW_TOKENS}"
            )


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--image", type=Path, metavar="PATH", help="a photo (default: one that scikit-image carries)")
    parser.add_argument(
        "--budgets", type=budget, nargs="+", default=list(BUDGETS), metavar="SHARE",
        help=f"besides all tokens (default: {' '.join(map(str, BUDGETS))})",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=count, nargs="+", default=list(CONCURRENCY), metavar="N",
        help=f"clients at once (default: {' '.join(map(str, CONCURRENCY))})",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=count, default=12, metavar="N", help="per round, at least twice the clients (default: 12)"
    )
    parser.add_argument("--rounds", type=count, default=2, metavar="N", help="runs of each budget (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("out/serve"), metavar="DIR", help="default: out/serve")
    parser.add_argument("--check", action="store_true", help="exit with 1 where selection serves fewer requests")
    return parser
