"""The GPU kernels compiled for every architecture: registers, spills, width of accesses, with no GPU at hand."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.status import Status
from rich.table import Table

from bench.command_line import ending, exit_codes
from bench.harness import Arguments, Recorder, environment
from bench.results import load, write_csv

PROGRAM = "python -m bench compile"
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
SHAPES = ((1024, 2048), (1024, 3584), (16384, 3584), (65536, 2048))  # tokens, columns: Qwen2.5-VL-3B and -7B
# Kernels whose accesses are rows of tokens or weights: as wide as a thread can.
ROWS = (
    "column_sums",
    "project",
    "directions",
    "row_dots",
    "weight_grads",
    "token_grads",
    "gather",
    "scatter",
    "mask_rows",
)
ROW_BYTES = 16
# Registers of a multiprocessor, and threads that it shall hold at once to cover the latency of its memory.
REGISTERS, PLANNED_THREADS = {"sm": 65536, "gfx": 131072}, 384


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run the suite.

    Returns:
        Exit code: 0; 1 with ``--check`` where a kernel spills, reads rows in less than 16 bytes, or takes more
        registers than the planned occupancy allows; 130 interrupted.
    """
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 132)
    missed: list[str] = []
    facts = {"suite": "compile", **environment(torch.device("cpu")), "archs": args.archs}
    records = args.out / "compile.jsonl"
    with Recorder(records, facts) as recorder, console.status("") as status:
        if recorder.resumed:
            console.print(f"resumed  {recorder.resumed}")
        for arch in args.archs:
            console.print(_triton_table(arch, recorder, status, missed))
        status.update("the CUDA library")
        console.print(_cuda_table(recorder, missed))
        recorder.finish()
    write_csv(args.out / "compile.csv", load(records))
    console.print(
        "Largest over all shapes, dtypes and variants of each kernel; registers and spills of a thread.", style="dim"
    )
    return ending(PROGRAM, console, (records, args.out / "compile.csv"), missed, args.check)


def _cuda_table(recorder: Recorder, missed: list[str]) -> Table | str:
    """The kernels of csrc/cuda, or why they are not shown."""
    from bench import compile_cuda
    from bench.ptxas import Resources

    jobs = compile_cuda.jobs()
    left = [job for job in jobs if not recorder.find("compiled", job=job)]
    try:
        for job, found in compile_cuda.compiled(left):
            for row in found:
                recorder.write("compile", job=job, **row._asdict())
            recorder.write("compiled", job=job)
    except RuntimeError as error:
        return f"csrc/cuda: not compiled: {error}"
    # Of a source that was cut off between two kernels and compiled again, the second counts.
    last = {(r["kernel"], r["arch"]): r for r in recorder.records if r["record"] == "compile" and r.get("job")}
    rows = [Resources(**{name: record[name] for name in Resources._fields}) for record in last.values()]
    missed += compile_cuda.problems(rows)
    table = Table(
        "kernel", "architecture", "registers", "spill bytes", "stack bytes", "shared bytes", title="csrc/cuda"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.kernel, row.arch, *map(str, row[2:]))
    return table


def _triton_table(arch: str, recorder: Recorder, status: Status, missed: list[str]) -> Table:
    from bench.gpu_cases import cases
    from bench.triton_compile import Compiled, compile_for
    from bench.triton_launches import as_on, launches
    from vs_kernels.library import triton_kernels

    found = defaultdict(list)
    seen = set()
    for length, width in SHAPES:
        with triton_kernels("cpu"), as_on(arch):
            for case in cases(length, width, torch.bfloat16):
                for launch in launches(case.call):
                    key = launch.name, str(launch[2:])
                    if key not in seen:
                        seen.add(key)
                        status.update(f"{arch}: {launch.name}")
                        where = {"arch": arch, "length": length, "width": width, "variant": len(seen)}
                        known = recorder.find("compile", **where)
                        if known is None:
                            known = recorder.write("compile", **where | compile_for(launch, arch)._asdict())
                        row = Compiled(**{name: known[name] for name in Compiled._fields})
                        found[row.kernel.strip("_").removesuffix("_kernel")].append(row)
    table = Table(
        "kernel", "variants", "threads", "registers", "spill bytes", "shared bytes", "widest access", title=arch
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for kernel, rows in found.items():
        threads, registers = max(row.threads for row in rows), max(row.registers for row in rows)
        spilled, shared = max(row.spill_bytes for row in rows), max(row.shared_bytes for row in rows)
        narrowest = min(row.widest for row in rows)
        table.add_row(kernel, *map(str, (len(rows), threads, registers, spilled, shared, narrowest)))
        where = f"{kernel} on {arch}"
        if spilled:
            missed.append(f"{where}: {spilled} bytes of spills, expected none")
        if kernel.startswith(ROWS) and narrowest < ROW_BYTES:
            missed.append(f"{where}: accesses of {narrowest} bytes, expected {ROW_BYTES}")
        budget = REGISTERS["sm" if arch.startswith("sm_") else "gfx"]
        for row in rows:
            at_once = max(row.threads, PLANNED_THREADS) if kernel.startswith(ROWS) else row.threads
            if row.registers * at_once > budget:
                missed.append(f"{where}: {row.registers} registers, too many for {at_once} threads")
                break
    return table


def _parser() -> Arguments:
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("--archs", nargs="+", default=list(ARCHS), metavar="ARCH", help=f"default: {' '.join(ARCHS)}")
    parser.add_argument("--out", type=Path, default=Path("out/compile"), metavar="DIR", help="default: out/compile")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a kernel misses its gate")
    return parser
