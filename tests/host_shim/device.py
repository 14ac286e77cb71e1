"""The straight-through backward from the library's CUDA header, compiled for the host."""

import importlib.util
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import torch
from straight_through_device import Device

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER.parents[1] / "build" / "host_shim"
_FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def compile_on_host(source: str, output: str, *flags: str) -> Path:
    """One source of this folder, with the CUDA headers as code of the host."""
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *flags]
    command += [f"-I{FOLDER.parents[1] / 'csrc' / 'cuda'}", str(FOLDER / source), "-o", str(BUILD / output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return BUILD / output


@cache
def host_module() -> ModuleType:
    """``run_rows``, ``run_pools`` and ``geometry``."""
    includes = (f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include")))
    library = compile_on_host(
        "bindings.cpp", "straight_through_host.so", "-shared", "-fPIC", "-fvisibility=hidden", *includes
    )
    spec = importlib.util.spec_from_file_location("straight_through_host", library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class HostDevice(Device):
    def address(self, name: str) -> int:
        return {**self.inputs, **self.results}[name].data_ptr()

    def launch_rows(self, task: bytes, wants_tokens: bool, wants_scores: bool) -> None:
        format = _FORMATS.index(self.case.tokens.dtype)
        host_module().run_rows(task, self.chunks, format, self.case.form == "mask", wants_scores, wants_tokens)

    def launch_pools(self, task: bytes, slices: int) -> None:
        host_module().run_pools(task, slices)
