"""The CUDA compiler: where it is, and how it is called for the library, the tests and the tables of its results.

Environment: CUDA_HOME names a toolkit, VS_KERNELS_CUDA_ARCHS the architectures, such as "80 90 100 120".
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = ("csrc/cuda/straight_through.cu",)
FLAGS = ["-std=c++17", "-O3"]
ARCHS = "80 90 100 120"


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, or of the path, or of the toolkit's usual folder, or None where there is none."""
    if os.environ.get("CUDA_HOME"):
        return shutil.which(Path(os.environ["CUDA_HOME"], "bin", "nvcc"))
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def architectures() -> list[str]:
    """Numbers of the architectures to compile for; the last one's PTX serves those that come later.

    Raises:
        SystemExit: VS_KERNELS_CUDA_ARCHS holds anything but numbers.
    """
    named = os.environ.get("VS_KERNELS_CUDA_ARCHS") or ARCHS
    archs = re.split(r"[\s,;]+", named.strip())
    if not all(re.fullmatch(r"\d+[af]?", arch) for arch in archs):
        raise SystemExit(f"VS_KERNELS_CUDA_ARCHS: got {named!r}, expected numbers such as {ARCHS!r}")
    return archs


def library_flags(archs: list[str]) -> list[str]:
    """Flags that make one object for all architectures."""
    targets = [f"arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    return [*FLAGS, *(word for target in targets for word in ("-gencode", target)), "--threads", "2"]


def torch_flags(torch: Path) -> list[str]:
    """Headers of torch, and its stable ABI of 2.10: one library serves every later torch, and every Python."""
    return ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", f"{torch}/include"]


def compile_source(source: Path, torch: Path, output: Path, *words: str) -> str:
    """Run nvcc on one source, for example with ``-ptx -arch=compute_80``; returns what it printed.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc: set CUDA_HOME, or put it on the path")
    command = [nvcc, *FLAGS, *torch_flags(torch), *words, str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr
