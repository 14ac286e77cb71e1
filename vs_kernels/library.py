"""The dispatcher library ``vs_kernels``: schemas, and the compiled kernels that were found.

Every operator has three hops: the public function, ``torch.ops.vs_kernels.<name>``, and the kernel that
the dispatcher picks for the device of its arguments. Schemas are defined once, in ``ops/<op>.py``, together
with a kernel in plain PyTorch that serves every device; compiled libraries and Triton only add faster ones.
"""

import contextlib
import ctypes
import functools
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("vs_kernels", "DEF")
_PLAIN_KERNELS: dict[str, Callable[..., Any]] = {}
_TRITON_KERNELS: set[str] = set()
_AUTOCAST_DEVICES = ("cpu", "cuda")

_CPU_LIBRARY = Path(__file__).with_name("_cpu.so")
_CUDA_LIBRARY = Path(__file__).with_name("_cuda.so")
# The operators that the CUDA library serves where it is loaded.
CUDA_OPERATORS = ("straight_through_gather_backward", "straight_through_mask_backward")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define one operator.

    Args:
        schema: name, arguments and results, without the namespace.
        kernel: the operator in plain PyTorch; serves every device that has no compiled kernel.
        fake: shapes and dtypes of the results from fake tensors.

    Returns:
        The operator, ``torch.ops.vs_kernels.<name>.default``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _PLAIN_KERNELS[name] = kernel
    _LIBRARY.impl(name, without_cuda_library(name, _announced(kernel)), "CompositeExplicitAutograd")
    if TRITON_PROBLEM is None and not _has_kernel(name, "CUDA"):
        _LIBRARY.impl(name, without_cuda_library(name, triton_kernel(name)), "CUDA")
        _TRITON_KERNELS.add(name)
    torch.library.register_fake(f"vs_kernels::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.vs_kernels, name).default
    positions = [i for i, arg in enumerate(op._schema.arguments) if arg.name in ("scores", "selection_scores")]
    if positions:
        for device in _AUTOCAST_DEVICES:
            _LIBRARY.impl(name, _autocast_scores(op, positions, device), f"Autocast{device.upper()}")
    return op


def _autocast_scores(op: Any, positions: list[int], device: str) -> Callable[..., Any]:
    """The autocast rule: scores in float32 (as for softmax), tokens and weights as they come."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def kernel(*args: Any) -> Any:
        cast = list(args)
        for i in positions:
            if i < len(cast) and isinstance(cast[i], Tensor):
                cast[i] = cast[i].float()
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*cast)

    return kernel


def _announced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, preceded by one warning per process and device where a faster one was expected."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        device = next((arg.device.type for arg in args if isinstance(arg, Tensor)), "cpu")
        problem = {"cpu": CPU_PROBLEM, "cuda": TRITON_PROBLEM}.get(device)
        if problem is not None:
            _warn_once(f"vs_kernels runs its slower PyTorch path on {device}: {problem}")
        return kernel(*args)

    return run


def without_cuda_library(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, preceded by one warning per process where the CUDA library was expected to serve in its place."""
    if name not in CUDA_OPERATORS or torch.version.cuda is None or CUDA_PROBLEM is None:
        return kernel

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        if any(isinstance(arg, Tensor) and arg.device.type == "cuda" for arg in args):
            _warn_once(f"vs_kernels runs the straight-through backward without its CUDA library: {CUDA_PROBLEM}")
        return kernel(*args)

    return run


def triton_kernel(name: str) -> Callable[..., Any]:
    """The Triton launcher of operator ``name`` in ``kernels/<operator>.py``; imported by its first call."""

    @functools.cache
    def launcher() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"vs_kernels.kernels.{name.removesuffix('_backward')}"), name)

    return lambda *args: launcher()(*args)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _load(path: Path, needs: str) -> str | None:
    """Load a compiled library; None, or why it is not there in words."""
    if not path.exists():
        return f"{path.name} was not built ({needs})"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} could not be loaded: {error}"
    return None


def cuda_version(path: Path = _CUDA_LIBRARY) -> tuple[int, int]:
    """Version of CUDA that the CUDA library was built with, read from the file: to load it may be a mistake."""
    found = re.search(rb"vs_kernels CUDART_VERSION (\d+)", path.read_bytes())
    number = int(found[1]) if found else 0
    return number // 1000, number % 1000 // 10


def _load_cuda(path: Path) -> str | None:
    """The same for the CUDA library; asks no driver."""
    if torch.version.cuda is None:
        return f"{path.name} is not loaded beside a torch without CUDA"
    if path.exists():
        major, minor = cuda_version(path)
        if major != int(torch.version.cuda.partition(".")[0]):
            return (
                f"{path.name} is built with CUDA {major}.{minor}, this torch with {torch.version.cuda}: take a wheel "
                f"for the CUDA of this torch, or build from source with its nvcc (CUDA_HOME)"
            )
    return _load(path, "no nvcc when the package was installed, or VS_KERNELS_CUDA=0")


CPU_PROBLEM: str | None = _load(_CPU_LIBRARY, "no C++ compiler when the package was installed, or VS_KERNELS_CPU=0")
CUDA_PROBLEM: str | None = _load_cuda(_CUDA_LIBRARY)
# Found, not imported: that takes longer than everything else here.
TRITON_PROBLEM: str | None = None if importlib.util.find_spec("triton") else "Triton is not installed"


def cpu_isa() -> str | None:
    """The instruction set whose CPU kernels run: "baseline", "avx2" or "avx512"; None without the library."""
    if CPU_PROBLEM is not None:
        return None
    query = ctypes.CDLL(str(_CPU_LIBRARY)).vs_kernels_cpu_isa
    query.restype = ctypes.c_char_p
    return query().decode()


def set_cpu_isa(name: str) -> None:
    """Choose the instruction set of the CPU kernels, for tests and measurements.

    Raises:
        ValueError: the name is unknown, or this CPU or build lacks the instruction set.
    """
    if CPU_PROBLEM is not None or ctypes.CDLL(str(_CPU_LIBRARY)).vs_kernels_cpu_set_isa(name.encode()) != 0:
        raise ValueError(f"name: got {name!r}, expected an instruction set that this build and this CPU have")


def kernel_of(name: str, device: str) -> str:
    """Which kernel serves operator ``name`` on ``device``: "C++", "Triton" or "PyTorch"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    if key is None or not _has_kernel(name, key):
        return "PyTorch"
    return "Triton" if key == "CUDA" and name in _TRITON_KERNELS else "C++"


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"vs_kernels::{name}", key)


def plain_kernels() -> contextlib.AbstractContextManager[None]:
    """The kernels in plain PyTorch on the CPU, for tests and measurements, while the context lasts."""
    return _forced(_PLAIN_KERNELS, "CPU")


def triton_kernels(device: str = "cuda") -> contextlib.AbstractContextManager[None]:
    """The Triton kernels on ``device``, for tests and measurements, while the context lasts; on "cpu" they need
    ``TRITON_INTERPRET=1``."""
    return _forced({name: triton_kernel(name) for name in _PLAIN_KERNELS}, device.upper())


@contextlib.contextmanager
def _forced(kernels: dict[str, Callable[..., Any]], key: str) -> Iterator[None]:
    override = torch.library.Library("vs_kernels", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kernel in kernels.items():
                override.impl(name, kernel, key, allow_override=True)
        yield
    finally:
        override._destroy()
