"""Registers, spills, stack and shared memory of GPU kernels, as the assembler of the CUDA toolkit counts them."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple


class Resources(NamedTuple):
    """What one kernel takes of one architecture; bytes are per thread, shared memory per block."""

    kernel: str
    arch: str
    registers: int
    spill_bytes: int  # stores and loads
    stack_bytes: int
    shared_bytes: int  # static


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes cumulative stack size)?(?:.*?(\d+) bytes smem)?")


def parse(log: str, arch: str) -> list[Resources]:
    """The kernels of one architecture, such as "sm_90", in what ``ptxas -v`` printed; nvcc prints the same."""
    found = []
    kernel = target = function = ""
    frames: dict[str, tuple[int, int]] = {}  # stack and spill bytes of each function
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel, target = entry.groups()
            frames = {}
        elif properties := _PROPERTIES.search(line):
            function = properties[1]
        elif stack := _STACK.search(line):
            frame, stores, loads = map(int, stack.groups())
            frames[function] = frame, stores + loads
        elif (used := _USED.search(line)) and target == arch:
            frame, spilled = frames[kernel]
            registers, cumulative, shared = (int(number or 0) for number in used.groups())
            found.append(Resources(kernel, arch, registers, spilled, max(frame, cumulative), shared))
    return found


def find_ptxas() -> str | None:
    """The newest assembler that Triton brings, which knows all architectures, else that on the path, else None."""
    spec = importlib.util.find_spec("triton")
    if spec and spec.origin:
        folder = Path(spec.origin).with_name("backends") / "nvidia" / "bin"
        for name in ("ptxas-blackwell", "ptxas"):
            if (folder / name).is_file():
                return str(folder / name)
    return shutil.which("ptxas")


def assemble(ptx: str, arch: str) -> list[Resources]:
    """The kernels of a PTX module, assembled for ``arch``, such as "sm_90a".

    Raises:
        FileNotFoundError: there is no ptxas.
        RuntimeError: ptxas does not accept the module; with what it said.
    """
    ptxas = find_ptxas()
    if ptxas is None:
        raise FileNotFoundError("ptxas: found neither beside an installed Triton nor on the path")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "module.ptx")
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={arch}", str(source), "-o", str(Path(folder, "module.cubin"))]
        done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"ptxas: {log.strip()}")
    return parse(log, arch)
