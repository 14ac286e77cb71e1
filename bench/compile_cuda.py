"""The CUDA kernels compiled for every architecture: what each takes, and whether that allows the planned occupancy."""

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import ptxas
from bench.ptxas import Resources

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))
from vs_kernels_build import torch_root  # noqa: E402
from vs_kernels_nvcc import SOURCES, compile_source  # noqa: E402

ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS = 65536  # of a multiprocessor, on every architecture here
# Threads of a block and blocks that a multiprocessor shall hold at once, by the first word of a kernel's name: as in
# straight_through.cuh.
PLANNED = {"straight_through_rows": (128, 6), "straight_through_pools": (512, 2)}


def jobs() -> list[str]:
    """What there is to compile: ``source for arch``."""
    return [f"{source} for {arch}" for source in SOURCES for arch in ARCHS]


def compiled(some: Sequence[str]) -> Iterator[tuple[str, list[Resources]]]:
    """Each of some jobs as soon as it is done, with its kernels under names that people can read.

    Raises:
        RuntimeError: there is no nvcc, or it does not accept a source.
    """
    with ThreadPoolExecutor(2) as pool:
        yield from zip(some, pool.map(lambda job: _compile(*job.split(" for ")), some), strict=True)


def problems(found: list[Resources]) -> list[str]:
    """What is wrong with them: spills, a stack, or too many registers for the planned occupancy."""
    wrong = []
    for row in found:
        name = f"{row.kernel} on {row.arch}"
        threads, blocks = PLANNED[row.kernel.partition("<")[0]]
        if row.spill_bytes or row.stack_bytes:
            wrong.append(f"{name}: {row.spill_bytes} bytes of spills, {row.stack_bytes} bytes of stack, expected none")
        allowed = REGISTERS // (threads * blocks)
        if row.registers > allowed:
            wrong.append(f"{name}: {row.registers} registers, at most {allowed} let {blocks} blocks run side by side")
    return wrong


def _compile(source: str, arch: str) -> list[Resources]:
    torch = torch_root()
    if torch is None:
        raise RuntimeError("no torch to compile against")
    with tempfile.TemporaryDirectory() as folder:
        log = compile_source(
            ROOT / source, torch, Path(folder, "kernels.cubin"), "-cubin", f"-arch={arch}", "-Xptxas=-v"
        )
    return [row._replace(kernel=_readable(row.kernel)) for row in ptxas.parse(log, arch)]


_SYMBOL = re.compile(r"(straight_through_rows)INS0_\d+(\w+?)ELNS0_4FormE(\d)ELb(\d)ELb(\d)E|(straight_through_pools)")


def _readable(symbol: str) -> str:
    """``straight_through_rows<BFloat16, gather, scores and tokens>`` for its symbol."""
    found = _SYMBOL.search(symbol)
    assert found, symbol
    rows, format, form, scores, tokens, pools = found.groups()
    if pools:
        return pools
    wanted = " and ".join(word for word, flag in (("scores", scores), ("tokens", tokens)) if flag == "1")
    return f"{rows}<{format}, {('gather', 'mask')[int(form)]}, {wanted}>"
