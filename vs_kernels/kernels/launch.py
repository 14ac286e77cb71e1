"""What every launcher does: run a kernel where its tensors are, with tensors as the kernels expect them."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: Sequence[int], *args: Any, **options: Any) -> None:
    """Run ``kernel`` on the device of its first tensor; an empty grid has nothing to do."""
    if 0 in grid:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel[tuple(grid)](*args, **options)


def row_major(matrix: Tensor) -> Tensor:
    """The same matrix with its rows contiguous; they may lie apart."""
    return matrix if matrix.stride(-1) == 1 or matrix.shape[-1] <= 1 else matrix.contiguous()
