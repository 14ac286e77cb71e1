"""A suite in several processes, one after the other: what a process keeps for life differs between them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.command_line import count
from bench.harness import ROOT, Arguments, Recorder, environment

RECORDS = "processes.jsonl"
OPTION = "--processes"


def wanted(argv: Sequence[str]) -> bool:
    """Whether the command line of a suite asks for it."""
    return any(argument.partition("=")[0] == OPTION for argument in argv)


def main(suite: str, argv: Sequence[str]) -> int:
    """Run ``python -m bench SUITE`` as often as --processes says, each with a directory of its own in --out.

    Returns:
        Exit code: the largest of the processes'; 130 where it was interrupted. The same command then goes on.
    """
    program = f"python -m bench {suite}"
    parser = Arguments(program, add_help=False, allow_abbrev=False)
    parser.add_argument(OPTION, type=count, required=True)
    parser.add_argument("--out", type=Path, default=Path("out") / suite)
    args, options = parser.parse_known_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(args.out / RECORDS, {"options": options, **environment(torch.device("cpu"))})
    except OSError as error:
        parser.error(f"argument --out: {error}")
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    worst = 0
    with recorder:
        for number in range(1, args.processes + 1):
            if recorder.find("process", number=number):
                print(f"process {number}: done before the interruption")
                continue
            print(f"process {number} of {args.processes}", flush=True)
            command = [sys.executable, "-m", "bench", suite, *options, "--out", str(args.out / str(number))]
            try:
                code = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}).returncode
            except KeyboardInterrupt:
                code = 130
            if code == 130:
                print(f"{program}: interrupted; the same command goes on after what was measured", file=sys.stderr)
                return code
            if code == 2:  # of its command line, the same for all
                return code
            worst = max(worst, code)
            recorder.write("process", number=number, exit_code=code)
        recorder.finish()
    return worst
