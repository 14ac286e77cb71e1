"""Both launches of the straight-through backward on a device that a test provides, with their structs as bytes."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from straight_through_cases import Case
from torch import Tensor

_SOFT_POOLS = np.dtype(
    [(name, np.uint64) for name in ("scores", "pivots", "shifts", "cu_lengths")]
    + [("count", np.int64), ("inverse_temperature", np.float32)],
    align=True,
)
_ROWS_TASK = np.dtype(
    [(name, np.uint64) for name in ("grads", "tokens", "kept", "grad_tokens", "credits", "moments")]
    + [(name, np.int64) for name in ("grads_stride", "tokens_stride", "num_rows", "num_kept")]
    + [(name, np.int32) for name in ("columns", "vectors", "chunk_rows", "warps_per_row")]
    + [("factor", np.float32), ("pools", _SOFT_POOLS)],
    align=True,
)
_POOLS_TASK = np.dtype(
    [(name, np.uint64) for name in ("credits", "moments", "grad_scores")]
    + [("chunk_rows", np.int64), ("pools", _SOFT_POOLS)],
    align=True,
)


class Device(ABC):
    """One case in the memory of a device: ``inputs`` and ``results`` by name, the results full of NaN."""

    def __init__(self, case: Case, chunk_rows: int = 4, warps_per_row: int = 1) -> None:
        total, width = case.tokens.shape
        self.case, self.chunk_rows, self.warps_per_row = case, chunk_rows, warps_per_row
        self.chunks = math.ceil(total / chunk_rows)
        self.results = {
            "grad_tokens": torch.full((total, width), torch.nan, dtype=case.tokens.dtype),
            "grad_scores": torch.full((total,), torch.nan),
            "credits": torch.full((total,), torch.nan),
            "moments": torch.full((self.chunks, 3), torch.nan),
        }
        self.inputs = {
            "grads": _with_gaps(case.grads),
            "tokens": _with_gaps(case.tokens),
            "kept": case.kept,
            "scores": case.scores,
            "pivots": case.pivots,
            "shifts": case.shifts,
            "cu_lengths": case.plan.cu_lengths("cpu"),
        }

    @abstractmethod
    def address(self, name: str) -> int:
        """Where an input or a result begins."""

    @abstractmethod
    def launch_rows(self, task: bytes, wants_tokens: bool, wants_scores: bool) -> Any: ...

    @abstractmethod
    def launch_pools(self, task: bytes, slices: int) -> Any: ...

    def run_rows(self, wants_tokens: bool = True, wants_scores: bool = True) -> Any:
        """The first launch."""
        total, width = self.case.tokens.shape
        strides = (self.case.grads.stride(0), self.case.tokens.stride(0))
        size = self.case.tokens.element_size()
        # the gradient of the tokens is packed: its rows lie a width apart
        aligned = all(entries * size % 16 == 0 for entries in (*strides, *([width] if wants_tokens else [])))
        task = {
            "grads_stride": strides[0],
            "tokens_stride": strides[1],
            "num_rows": total,
            "num_kept": self.case.kept.numel(),
            "columns": width,
            "vectors": width * size // 16 if aligned else 0,
            "chunk_rows": self.chunk_rows,
            "warps_per_row": self.warps_per_row,
            "factor": self.case.factor,
        }
        return self.launch_rows(self._packed(_ROWS_TASK, task), wants_tokens, wants_scores)

    def run_pools(self, slices: int = 1) -> Any:
        """The second launch."""
        return self.launch_pools(self._packed(_POOLS_TASK, {"chunk_rows": self.chunk_rows}), slices)

    def backward(self, slices: int = 1) -> tuple[Tensor, Tensor]:
        """Both launches: gradients of tokens and scores."""
        self.run_rows()
        self.run_pools(slices)
        return self.results["grad_tokens"], self.results["grad_scores"]

    def _packed(self, layout: np.dtype, numbers: dict[str, float]) -> bytes:
        task = np.zeros((), layout)
        pools = task["pools"]
        pools["count"] = self.case.plan.num_pools
        pools["inverse_temperature"] = 1.0 / self.case.temperature
        for struct in (task, pools):
            for name in struct.dtype.names:
                if struct.dtype[name] == np.uint64:
                    struct[name] = self.address(name)
        for name, number in numbers.items():
            task[name] = number
        return task.tobytes()


def _with_gaps(rows: Tensor) -> Tensor:
    """The memory of rows that may lie apart, with what is between them."""
    return rows.as_strided((rows.shape[0], rows.stride(0)), (rows.stride(0), 1)) if rows.shape[0] else rows
