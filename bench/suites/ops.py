"""Every operator against its competitors: verified, timed in one run, compared with the targets."""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.command_line import count, ending, exit_codes
from bench.harness import Arguments, Recorder, device_argument, environment, peak_memory
from bench.ops_cases import REACHED, cases
from bench.ops_run import Row, measure, measure_small
from bench.ops_small import small_calls
from bench.ops_summary import device_table, disturbance, failures, from_record, limits, notes, record, table
from bench.ops_timing import Stream, Timer, measured_matrix_rate
from bench.ops_workload import Sizes, Workload
from bench.results import load, write_csv

PROGRAM = "python -m bench ops"
SEED = 0
RECORDS, SUMMARY, TABLE = "rows.jsonl", "summary.json", "rows.csv"
SECONDS, QUICK_SECONDS = 1.5, 0.5  # that the calls of one row take together
FILE_WIDTH = 152  # columns of the table where no terminal says


@exit_codes(PROGRAM)
def main(argv: Sequence[str], sizes: Sizes | None = None) -> int:
    """Run the suite.

    Args:
        argv: command line after the name of the suite.
        sizes: of tokens and scorer; None: those of the targets.

    Returns:
        Exit code: 0; 1 for a wrong result, or with ``--check`` for a missed target that this machine allows; 130 when
        interrupted.
    """
    started = time.perf_counter()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.check and args.device.type != "cpu":
        parser.error("argument --check: the targets are those of the CPU, expected --device cpu")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        # What an earlier run made of its records must not lie beside the records of this one.
        (args.out / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")

    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    stream = torch.cuda.Stream(args.device) if args.device.type == "cuda" else None
    try:
        facts = {"suite": "ops", **environment(args.device), "seed": SEED, "quick": args.quick}
        # Not on the default stream: what runs there, backwards among it, no graph can hold.
        with Recorder(args.out / RECORDS, facts) as recorder, torch.cuda.stream(stream):
            _print_header(console, facts)
            rows, skipped = _measure(args, sizes or Sizes(), recorder, console)
            recorder.finish()
    finally:
        torch.set_num_threads(threads)

    missed = failures(rows)
    disturbed = disturbance(rows, min(args.threads, facts["cores"]))
    outcome = {"missed": missed, "skipped": skipped, "disturbed": disturbed, "seconds": time.perf_counter() - started}
    summary = {**facts, **outcome, "peak_memory": peak_memory(args.device)}
    (args.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    write_csv(args.out / TABLE, load(args.out / RECORDS))
    _print_results(console, rows, summary)
    return ending(PROGRAM, console, (args.out / name for name in (RECORDS, TABLE, SUMMARY)), missed, args.check)


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--device", type=device_argument, default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="of torch on the CPU (default: 2)")
    parser.add_argument("--quick", action="store_true", help="leave out the rows that take long, repeat less")
    parser.add_argument("--out", type=Path, default=Path("out/ops"), metavar="DIR", help="default: out/ops")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a target is missed that this machine allows"
    )
    return parser


def _print_header(console: Console, facts: dict[str, Any]) -> None:
    console.print(
        f"machine  {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['memory_gib']} GiB; "
        f"device {facts['device']}, seed {facts['seed']}\n"
        f"versions torch {facts['torch']}, python {facts['python']}, vs_kernels {facts['vs_kernels']}, "
        f"its CPU kernels: {facts['cpu_kernels']}",
        soft_wrap=True,
    )


def _measure(
    args: argparse.Namespace, sizes: Sizes, recorder: Recorder, console: Console
) -> tuple[list[Row], list[str]]:
    """The rows, and what ``--quick`` left out."""
    timer = Timer(args.device, QUICK_SECONDS if args.quick else SECONDS)
    rows: list[Row] = []
    skipped: list[str] = []

    def add(where: str, key: dict[str, str], measured: Callable[[], Row]) -> None:
        found = recorder.find("row", **key)
        status.update(where)
        row = from_record(found) if found else measured()
        if not found:
            recorder.write("row", **record(row))
        rows.append(row)

    if recorder.resumed:
        console.print(f"resumed  {recorder.resumed}")
    with console.status("measuring the read bandwidth") as status:
        stream = Stream(sizes.stream_bytes, args.device, timer)
        matrix_rate = measured_matrix_rate(sizes.matrix, args.device, timer)
        recorder.write(
            "ceilings", way=stream.way, bytes_per_second=stream.bandwidth, most_bytes_per_second=stream.most,
            cores=stream.cores, flops_per_second=matrix_rate,
        )  # fmt: skip
        console.print(
            f"reads    {stream.bandwidth / 1e9:.1f} GB/s, {args.threads} threads, by {stream.way} over "
            f"{sizes.stream_bytes / 2**20:,.0f} MiB, the fastest of a few ways; got {stream.cores:.1f} cores\n"
            f"matrix   {matrix_rate / 1e9:,.0f} Gflop/s, float32 product of {sizes.matrix:,} rows and columns\n"
        )
        work = Workload(sizes, args.device, stream, SEED)
        on_cpu = args.device.type == "cpu"
        for case in cases(work):
            case = case if on_cpu else case._replace(target=None)  # targets are the CPU's
            where = f"{case.operator}, {case.shape}, against {case.against}"
            if case.slow and args.quick:
                skipped.append(where)
                continue
            key = {"operator": case.operator, "shape": case.shape, "against": case.against}
            add(where, key, functools.partial(measure, case, work, timer))
        small = small_calls(work)
        measured = functools.cache(lambda: measure_small(small, timer, judged=on_cpu))
        for number, call in enumerate(small):
            key = {"operator": call.operator, "shape": call.shape, "unit": "µs"}
            add(f"{call.shape}, all operators", key, lambda number=number: measured()[number])
    return rows, skipped


def _print_results(console: Console, rows: list[Row], summary: dict[str, Any]) -> None:
    console.print(table(rows))
    if any(row.our_peak is not None for row in rows):
        console.print(device_table(rows))
    console.print(
        "Medians of interleaved calls; every result was verified against float64 first. Ratio: the median of those of "
        "the rounds, in each of which both meet the same machine; where there is no bandwidth, of the quarter of the "
        "rounds in which PyTorch's index_select of one row, next to ours, was fastest. CPU time: the same of process "
        "times. Bandwidth: bytes that must be moved over our time, as a share of the measured reads. One token (µs): "
        "the public call on one token of width 8, which is what a call costs beyond its kernel. Blocks of 24 MiB and "
        "more are fresh from the system, for everybody. Limit: the target asks for more than moving ours' bytes alone "
        f"would leave, and ours reaches {REACHED:.0%} of that.",
        style="dim",
    )
    for note in notes(rows):
        console.print(note, style="dim")
    at_limit = limits(rows)
    for limit in at_limit:
        console.print(f"limit: {limit}", style="cyan")
    for left_out in summary["skipped"]:
        console.print(f"--quick left out: {left_out}", style="dim")
    if summary["disturbed"]:
        console.print(summary["disturbed"], style="red")
    judged = sum(row.met is not None for row in rows)
    peaks = ", ".join(f"{size / 2**30:.1f} GiB {name}" for name, size in summary["peak_memory"].items())
    console.print(
        f"\n{judged - len(summary['missed']) - len(at_limit)} of {judged} targets met, {len(at_limit)} more at the "
        f"limit of this machine; {summary['seconds']:.0f} s in all; peak memory: {peaks}"
    )
