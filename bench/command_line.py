"""What the command lines of the suites share: types of arguments, exit codes, the last words."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec

from rich.console import Console

from bench.ops_verify import WrongResult

Parameters = ParamSpec("Parameters")


def count(text: str) -> int:
    """An integer of at least 1, or the error that argparse shows."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer >= 1")
    return int(text)


def exit_codes(program: str) -> Callable[[Callable[Parameters, int]], Callable[Parameters, int]]:
    """Of a suite's main: 1 where a result is wrong, 130 where it was interrupted, each with a line on stderr."""

    def around(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
        @functools.wraps(main)
        def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except WrongResult as error:
                print(f"{program}: wrong result, so no times: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"{program}: interrupted; the same command goes on after what was measured", file=sys.stderr)
                return 130

        return guarded

    return around


def ending(program: str, console: Console, files: Iterable[Path], missed: Sequence[str], check: bool) -> int:
    """Print the files that a run wrote and, with ``check``, what it missed; the exit code."""
    for path in files:
        console.print(f"  {path}", soft_wrap=True, markup=False)
    if not check:
        return 0
    for sentence in missed:
        print(f"{program}: missed target: {sentence}", file=sys.stderr)
    return 1 if missed else 0
