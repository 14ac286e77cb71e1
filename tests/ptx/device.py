"""Both launches of the straight-through backward, on the interpreted device."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from straight_through_cases import Case, bits
from torch import Tensor
from vs_kernels_build import torch_root
from vs_kernels_nvcc import SOURCES, compile_source

from .machine import launch
from .memory import Memory
from .parse import Kernel, parse

ROOT = Path(__file__).resolve().parents[2]

SLICE_ROWS = 8192  # of a pool, to one block, as in straight_through.cuh
_FORMATS = {torch.float32: "7Float32", torch.bfloat16: "8BFloat16", torch.float16: "7Float16"}
_POOLS = [(name, np.uint64) for name in ("scores", "pivots", "shifts", "cu_lengths")]
_SOFT_POOLS = np.dtype([*_POOLS, ("count", np.int64), ("inverse_temperature", np.float32)], align=True)
ROWS_TASK = np.dtype(
    [(name, np.uint64) for name in ("grads", "tokens", "kept", "grad_tokens", "credits", "moments")]
    + [(name, np.int64) for name in ("grads_stride", "tokens_stride", "num_rows", "num_kept")]
    + [(name, np.int32) for name in ("columns", "vectors", "chunk_rows", "warps_per_row")]
    + [("factor", np.float32), ("pools", _SOFT_POOLS)],
    align=True,
)
POOLS_TASK = np.dtype(
    [(name, np.uint64) for name in ("credits", "moments", "grad_scores")]
    + [("chunk_rows", np.int64), ("pools", _SOFT_POOLS)],
    align=True,
)


@cache
def kernels(arch: str) -> dict[str, Kernel]:
    """The kernels of the library's source, compiled for a virtual architecture such as "compute_80"."""
    output = ROOT / "build" / "ptx" / f"{arch}.ptx"
    output.parent.mkdir(parents=True, exist_ok=True)
    torch_folder = torch_root()
    assert torch_folder is not None
    compile_source(ROOT / SOURCES[0], torch_folder, output, "-ptx", f"-arch={arch}")
    return parse(output.read_text())


def kernel_named(arch: str, *parts: str) -> Kernel:
    (found,) = (kernel for name, kernel in kernels(arch).items() if all(part in name for part in parts))
    return found


class Device:
    """One case in the memory of the device: results full of NaN, gaps between rows as well."""

    def __init__(self, case: Case, arch: str = "compute_90", chunk_rows: int = 4, warps_per_row: int = 1) -> None:
        total, width = case.tokens.shape
        size = case.tokens.element_size()
        self.case, self.arch, self.chunk_rows = case, arch, chunk_rows
        self.chunks = math.ceil(total / chunk_rows)
        self.results = {
            "grad_tokens": torch.full((total, width), torch.nan, dtype=case.tokens.dtype),
            "grad_scores": torch.full((total,), torch.nan),
            "credits": torch.full((total,), torch.nan),
            "moments": torch.full((self.chunks, 3), torch.nan),
        }
        inputs = {
            "grads": _with_gaps(case.grads),
            "tokens": _with_gaps(case.tokens),
            "kept": case.kept,
            "scores": case.scores,
            "pivots": case.pivots,
            "shifts": case.shifts,
            "cu_lengths": case.plan.cu_lengths("cpu"),
        }
        arrays = {name: bits(tensor) for name, tensor in {**inputs, **self.results}.items()}
        self.memory = Memory(arrays, writable=set(self.results), counted={"grads", "tokens", "grad_tokens"})
        self.pools = {
            **{name: self.memory.address(name) for name in ("scores", "pivots", "shifts", "cu_lengths")},
            "count": case.plan.num_pools,
            "inverse_temperature": 1.0 / case.temperature,
        }
        strides = (case.grads.stride(0), case.tokens.stride(0))
        self.rows_task = {
            **{name: self.memory.address(name) for name in ROWS_TASK.names[:6]},
            "grads_stride": strides[0],
            "tokens_stride": strides[1],
            "num_rows": total,
            "num_kept": case.kept.numel(),
            "columns": width,
            "vectors": 0 if any(entries * size % 16 for entries in (*strides, width)) else width * size // 16,
            "chunk_rows": chunk_rows,
            "warps_per_row": warps_per_row,
            "factor": case.factor,
        }

    def run_rows(self, wants_tokens: bool = True, wants_scores: bool = True) -> int:
        """The first launch; returns the worst bank conflict."""
        form = "FormE0" if self.case.form == "gather" else "FormE1"
        flags = f"Lb{int(wants_scores)}ELb{int(wants_tokens)}E"
        format = _FORMATS[self.case.tokens.dtype]
        kernel = kernel_named(self.arch, "straight_through_rows", format, form, flags)
        return launch(kernel, (self.chunks, 1), _packed(ROWS_TASK, self.rows_task, self.pools), self.memory)

    def run_pools(self, slices: int = 1) -> int:
        """The second launch; returns the worst bank conflict."""
        task = {name: self.memory.address(name) for name in POOLS_TASK.names[:3]}
        packed = _packed(POOLS_TASK, {**task, "chunk_rows": self.chunk_rows}, self.pools)
        kernel = kernel_named(self.arch, "straight_through_pools")
        return launch(kernel, (self.case.plan.num_pools, slices), packed, self.memory)

    def backward(self, slices: int = 1) -> tuple[Tensor, Tensor]:
        """Both launches: gradients of tokens and scores."""
        self.run_rows()
        self.run_pools(slices)
        return self.results["grad_tokens"], self.results["grad_scores"]


def _with_gaps(rows: Tensor) -> Tensor:
    """The memory of rows that may lie apart, with what is between them."""
    return rows.as_strided((rows.shape[0], rows.stride(0)), (rows.stride(0), 1)) if rows.shape[0] else rows


def _packed(layout: np.dtype, values: dict[str, int | float], pools: dict[str, int | float]) -> bytes:
    task = np.zeros((), layout)
    for name, value in values.items():
        task[name] = value
    for name, value in pools.items():
        task["pools"][name] = value
    return task.tobytes()
