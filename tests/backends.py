"""Backends: the sets of kernels that this machine has."""

import contextlib
import importlib.util
from collections.abc import Iterator

from vs_kernels import library

if HAS_TRITON := importlib.util.find_spec("triton") is not None:
    import interpreter

    interpreter.repair()

ISAS = ("baseline", "avx2", "avx512")


def _available_isas() -> list[str]:
    if library.CPU_PROBLEM is not None:
        return []
    chosen = library.cpu_isa()
    available = []
    for isa in ISAS:
        with contextlib.suppress(ValueError):
            library.set_cpu_isa(isa)
            available.append(isa)
    library.set_cpu_isa(chosen)
    return available


BACKENDS = ["pytorch", *_available_isas()]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    if name == "pytorch":
        with library.plain_kernels():
            yield
    elif name == "triton":
        with library.triton_kernels("cpu"):
            yield
    else:
        chosen = library.cpu_isa()
        library.set_cpu_isa(name)
        try:
            yield
        finally:
            library.set_cpu_isa(chosen)
