"""The straight-through backward from the PTX of the library's source, on the interpreter."""

from functools import cache
from pathlib import Path

import torch
from straight_through_cases import Case, bits
from straight_through_device import Device
from vs_kernels_build import torch_root
from vs_kernels_nvcc import SOURCES, compile_source

from .machine import launch
from .memory import Memory
from .parse import Kernel, parse

ROOT = Path(__file__).resolve().parents[2]
_FORMATS = {torch.float32: "7Float32", torch.bfloat16: "8BFloat16", torch.float16: "7Float16"}


@cache
def kernels(arch: str) -> dict[str, Kernel]:
    """The kernels of the library, compiled for a virtual architecture such as "compute_80"."""
    output = ROOT / "build" / "ptx" / f"{arch}.ptx"
    output.parent.mkdir(parents=True, exist_ok=True)
    torch_folder = torch_root()
    assert torch_folder is not None
    compile_source(ROOT / SOURCES[0], torch_folder, output, "-ptx", f"-arch={arch}")
    return parse(output.read_text())


def kernel_named(arch: str, *parts: str) -> Kernel:
    (found,) = (kernel for name, kernel in kernels(arch).items() if all(part in name for part in parts))
    return found


class PtxDevice(Device):
    """Launches return the worst bank conflict; ``memory`` knows the traffic."""

    def __init__(self, case: Case, chunk_rows: int = 4, warps_per_row: int = 1, arch: str = "compute_90") -> None:
        super().__init__(case, chunk_rows, warps_per_row)
        self.arch = arch
        arrays = {name: bits(tensor) for name, tensor in {**self.inputs, **self.results}.items()}
        self.memory = Memory(arrays, writable=set(self.results), counted={"grads", "tokens", "grad_tokens"})

    def address(self, name: str) -> int:
        return self.memory.address(name)

    def launch_rows(self, task: bytes, wants_tokens: bool, wants_scores: bool) -> int:
        form = "FormE0" if self.case.form == "gather" else "FormE1"
        flags = f"Lb{int(wants_scores)}ELb{int(wants_tokens)}E"
        format = _FORMATS[self.case.tokens.dtype]
        kernel = kernel_named(self.arch, "straight_through_rows", format, form, flags)
        return launch(kernel, (self.chunks, 1), task, self.memory)

    def launch_pools(self, task: bytes, slices: int) -> int:
        kernel = kernel_named(self.arch, "straight_through_pools")
        return launch(kernel, (self.case.plan.num_pools, slices), task, self.memory)
