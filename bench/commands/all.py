"""Run every suite, one process each, and make the report: 10 to 15 minutes on two cores, or with --full everything."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.__main__ import described
from bench.harness import ROOT, Arguments, Recorder, environment

PROGRAM = "python -m bench all"
RECORDS = "suites.jsonl"
# By suite, the options of the short profile and of the full one; {out} is the directory of the suite.
OPTIONS: dict[str, tuple[str, str]] = {
    "ops": ("--quick --out {out}", "--out {out}"),
    "scaling": ("--quick --out {out}", "--out {out}"),
    "memory": ("--quick --out {out}", "--out {out}"),
    "train": ("--quick --out {out}", "--out {out}"),
    "prefill": ("--rounds 2 --out {out}", "--rounds 8 --long 2048 4096 8192 16384 --out {out}"),
    "traffic": ("--out {out}", "--lengths 1024 16384 --out {out}"),
    "compile": ("--archs sm_90 --out {out}", "--out {out}"),
    "families": ("--family Qwen2.5-VL --family LLaVA --out {out}", "--out {out}"),
    "serve": ("--rounds 1 --out {out}", "--budgets 0.5 0.2 --rounds 6 --out {out}"),
    "shapes": ("--quick --out {out}", "--out {out}"),
    "quality": ("--tasks tiles --pictures 200 --out {out}", "--out {out}"),
}
# Packages that this project's environment lacks, and where else the suite can be run.
NEEDS = {"serve": ("vllm", "make test-vllm; .venv-vllm/bin/python -m bench serve")}
OTHERS = ("--quick --out {out}", "--out {out}")


def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 where a suite failed; 130 interrupted."""
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes and repetitions: an hour or two")
    parser.add_argument("--suites", nargs="+", choices=described("suites"), help="only these")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"full": args.full, "suites": args.suites, **environment(torch.device("cpu"))}
    failed = []
    with Recorder(args.out / RECORDS, facts) as recorder:
        for suite in args.suites or described("suites"):
            if recorder.find("done", name=suite):
                print(f"{suite}: done before the interruption")
                continue
            if reason := lacks(suite):
                print(f"{suite}: not run: {reason}")
                continue
            print(f"\n{suite}\n{'=' * len(suite)}", flush=True)
            started = time.perf_counter()
            out = args.out / suite
            out.mkdir(exist_ok=True)
            options = OPTIONS.get(suite, OTHERS)[args.full].format(out=out.resolve())
            code = bench(suite, *options.split())
            if code == 130:
                print(f"{PROGRAM}: interrupted; the same command goes on with {suite}", file=sys.stderr)
                return 130
            seconds = time.perf_counter() - started
            if code:
                failed.append(suite)
            else:
                recorder.write("done", name=suite, seconds=seconds)
            print(f"{suite}: {seconds:.0f} s", flush=True)
        if not failed:
            recorder.finish()
    if failed:
        print(f"{PROGRAM}: failed: {', '.join(failed)}; the report lacks them", file=sys.stderr)
    return max(bench("report", str(args.out.resolve())), int(bool(failed)))


def lacks(suite: str) -> str:
    """Why a suite cannot run in this environment, and where it can; empty where it can."""
    package, elsewhere = NEEDS.get(suite, ("", ""))
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return f"{package} is not installed here; an environment that has it: {elsewhere}"


def bench(*arguments: str) -> int:
    """Exit code of ``python -m bench`` in a process of its own: memory and threads of one suite do not touch others."""
    try:
        return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT).returncode
    except KeyboardInterrupt:
        return 130
