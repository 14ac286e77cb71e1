"""What a launcher launches, caught before it runs: kernels with their argument types, as a compiler needs them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps",)


class Launch(NamedTuple):
    """One launch.

    Attributes:
        kernel: the function under @triton.jit.
        grid: programs along every axis.
        signature: type of every argument, in Triton's words.
        constexprs: arguments that are constants of the compilation.
        divisible: positions of pointers and integers that are multiples of 16.
        options: ``num_warps``, if given.
    """

    kernel: JITFunction
    grid: tuple[int, ...]
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible: tuple[int, ...]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def programs(self) -> int:
        count = 1
        for size in self.grid:
            count *= size
        return count


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The launches of ``call``, in order; no kernel runs, so its results are not to be read."""
    caught: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        caught.append(_launch(kernel, args, grid, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        call()
    return caught


def _launch(kernel: JITFunction, args: tuple[Any, ...], grid: tuple[int, ...], kwargs: dict[str, Any]) -> Launch:
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constexprs, divisible = {}, {}, []
    for position, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        # Triton makes a constant of None, and of 1 where it may specialize.
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name], constexprs[parameter.name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        else:
            signature[parameter.name] = "fp32"
            aligned = False
        if aligned and not parameter.do_not_specialize:
            divisible.append(position)
    return Launch(kernel, tuple(grid), signature, constexprs, tuple(divisible), options)


@contextlib.contextmanager
def as_on(arch: str) -> Iterator[None]:
    """Launchers choose their tiles as on a GPU of this architecture."""
    from vs_kernels.kernels import choose, tiles

    with (
        mock.patch.object(tiles, "architecture", lambda device: arch),
        mock.patch.object(choose, "architecture", lambda device: arch),
    ):
        yield
