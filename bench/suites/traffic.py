"""The Triton kernels' launches and bytes, counted in the interpreter, against what is needed at least."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.command_line import ending, exit_codes
from bench.harness import Arguments, Recorder, environment
from bench.results import load, write_csv

PROGRAM = "python -m bench traffic"
ALLOWED = 1.05  # bytes of rows and weights over what is needed at least
# An H100 on its data sheet; what follows from it is computed, not measured.
BYTES_PER_SECOND, LAUNCH_SECONDS = 3.35e12, 3e-6


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run the suite.

    Returns:
        Exit code: 0; 1 with ``--check`` where a kernel moves or launches more than it may, or waits for the device; 130
        interrupted.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
    import numpy as np
    import torch

    from bench.gpu_cases import cases, long_cases, long_selection
    from bench.traffic_count import counted, no_host_waits
    from vs_kernels.library import triton_kernels

    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 132)
    table = Table(
        "operator", "shape", "launches", "rows, MB", "needed, MB", "ratio", "score passes", "all, MB", "H100, µs"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    missed = []
    records = args.out / "traffic.jsonl"
    facts = {
        "suite": "traffic",
        **environment(torch.device("cpu")),
        "lengths": args.lengths,
        "long_lengths": args.long_lengths,
        "width": args.width,
    }
    every = [cases(length, args.width) for length in args.lengths]
    every += [long_cases(length) for length in args.long_lengths]
    every.append([long_selection()])
    with Recorder(records, facts) as recorder, console.status("") as status, triton_kernels("cpu"):
        if recorder.resumed:
            console.print(f"resumed  {recorder.resumed}")
        for some in every:
            forward = ""
            for case in some:
                forward = case.operator if case.operator[0] != " " else forward
                call = case.operator if case.operator[0] != " " else f"{forward} {case.operator.strip()}"
                status.update(f"{call}, {case.shape}")
                if (found := recorder.find("traffic", call=call, shape=case.shape)) is None:
                    with no_host_waits():
                        case.call()
                    with counted() as traffic, np.errstate(all="ignore"):
                        case.call()
                    seconds = max(traffic.total() / BYTES_PER_SECOND, traffic.launches * LAUNCH_SECONDS)
                    found = recorder.write(
                        "traffic", call=call, shape=case.shape, launches=traffic.launches,
                        read=traffic.read, written=traffic.written, rows=traffic.rows(), needed=case.rows,
                        score_passes=traffic.passes, h100_seconds_computed=seconds,
                    )  # fmt: skip
                launches, rows, passes = (found[name] for name in ("launches", "rows", "score_passes"))
                ratio = rows / case.rows if case.rows else None
                where = f"{call}, {case.shape}"
                if launches > case.launches:
                    missed.append(f"{where}: {launches} launches, expected at most {case.launches}")
                if ratio is not None and not 0.999 <= ratio <= ALLOWED:
                    missed.append(f"{where}: {ratio:.3f} of the bytes needed, expected at most {ALLOWED}")
                moved = sum(found["read"].values()) + sum(found["written"].values())
                table.add_row(
                    case.operator, case.shape, f"{launches} ≤ {case.launches}", f"{rows / 1e6:.2f}",
                    f"{case.rows / 1e6:.2f}", "-" if ratio is None else f"{ratio:.3f}",
                    f"{passes:.1f}" if passes else "-", f"{moved / 1e6:.2f}",
                    f"{found['h100_seconds_computed'] * 1e6:.1f}",
                )  # fmt: skip
        recorder.finish()
    write_csv(args.out / "traffic.csv", load(records))
    console.print(table)
    console.print(
        "Counted: launches, bytes of loads and stores, bfloat16, one pool, budget 0.2, no wait for the device. Rows: "
        "tokens, their gradients and weights. Computed, not measured: H100, the larger of all bytes over 3.35 TB/s and "
        "3 µs a launch.",
        style="dim",
    )
    return ending(PROGRAM, console, (records, args.out / "traffic.csv"), missed, args.check)


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024], metavar="N", help="tokens (default: 1024)")
    parser.add_argument(
        "--long-lengths", type=int, nargs="*", default=[65536], metavar="N",
        help="tokens, for operators that see scores alone (default: 65536)",
    )  # fmt: skip
    parser.add_argument("--width", type=int, default=3584, metavar="D", help="columns of a token (default: 3584)")
    parser.add_argument("--out", type=Path, default=Path("out/traffic"), metavar="DIR", help="default: out/traffic")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a kernel does more than it may")
    return parser
