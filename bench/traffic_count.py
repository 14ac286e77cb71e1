"""Bytes that Triton kernels load and store, in the interpreter; set ``TRITON_INTERPRET=1`` before the import."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from vs_kernels.kernels import launch

HOST_READS = ("item", "tolist", "cpu", "nonzero", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Traffic:
    """What the kernels of one call move.

    Attributes:
        launches: number of launches.
        read, written: bytes by the name of the kernel's argument.
        passes: over the scores: bytes of them read, over their size.
    """

    def __init__(self) -> None:
        self.launches = 0
        self.read: dict[str, int] = {}
        self.written: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._ranges: list[tuple[int, int, str]] = []
        self._score_reads = self._score_bytes = 0

    def rows(self) -> int:
        """Bytes of matrices of tokens, of their gradients and of weights."""
        names = {name for name, size in self._sizes.items() if size > 0}
        return sum(moved.get(name, 0) for moved in (self.read, self.written) for name in names)

    def total(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())

    @property
    def passes(self) -> float:
        return self._score_reads / self._score_bytes if self._score_bytes else 0.0

    def begin(self, kernel: Any, args: tuple[Any, ...]) -> None:
        self.launches += 1
        self._ranges = []
        for name, arg in zip(kernel.arg_names, args, strict=False):
            if isinstance(arg, Tensor) and arg.numel():
                first = arg.data_ptr()
                span = sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True)) + 1
                self._ranges.append((first, first + span * arg.element_size(), name))
                matrix = arg.dim() == 2 and arg.dtype in (torch.bfloat16, torch.float16)
                self._sizes[name] = max(self._sizes.get(name, 0), arg.nbytes if matrix else 0)
                if name == "scores":
                    self._score_bytes = arg.nbytes

    def note(self, moved: dict[str, int], pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        active = np.broadcast_to(pointers, np.broadcast(pointers, mask).shape)[np.broadcast_to(mask, pointers.shape)]
        if not active.size:
            return
        name = next((name for first, end, name in self._ranges if first <= int(active.flat[0]) < end), "?")
        moved[name] = moved.get(name, 0) + active.size * size
        if name == "scores" and moved is self.read:
            self._score_reads += active.size * size


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count what the kernels launched in this context move; an atomic reads and writes."""
    traffic = Traffic()
    load, store, run = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store, launch._run
    add = interpreter_builder.create_atomic_rmw

    def counted_load(ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        traffic.note(traffic.read, ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8 or 1)
        return load(ptrs, mask, other, *rest)

    def counted_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.note(traffic.written, ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8 or 1)
        return store(ptrs, value, mask, *rest)

    def counted_add(op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        for moved in (traffic.read, traffic.written):
            traffic.note(moved, ptr.data, mask.data, value.dtype.primitive_bitwidth // 8)
        return add(op, ptr, value, mask, *rest)

    def counted_run(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        traffic.begin(kernel, args)
        run(kernel, grid, args, options)

    with (
        mock.patch.object(interpreter_builder, "create_masked_load", counted_load),
        mock.patch.object(interpreter_builder, "create_masked_store", counted_store),
        mock.patch.object(interpreter_builder, "create_atomic_rmw", counted_add),
        mock.patch.object(launch, "_run", counted_run),
    ):
        yield traffic


class HostWait(AssertionError):
    """A launcher would wait for a GPU."""


@contextlib.contextmanager
def no_host_waits() -> Iterator[list[Any]]:
    """What would make the host wait for a GPU raises: reading a value of a tensor, a shape that depends on values.

    Kernels do not run in this context, so that only the launchers are judged; it yields the list of their launches.

    Raises:
        HostWait: in the offending call.
    """

    def wait(*_: Any, **__: Any) -> Any:
        raise HostWait("a launcher reads a value of a tensor on the host")

    launches: list[Any] = []
    with contextlib.ExitStack() as stack:
        for method in HOST_READS:
            stack.enter_context(mock.patch.object(Tensor, method, wait))
        stack.enter_context(mock.patch.object(launch, "_run", lambda *launched: launches.append(launched)))
        yield launches
