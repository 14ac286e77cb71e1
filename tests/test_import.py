"""What `import vs_kernels` does, and what a package without its C++ library does."""

import shutil
import subprocess
import sys
from pathlib import Path

import vs_kernels

PACKAGE = Path(vs_kernels.__file__).parent

IMPORT = """
import sys, torch, vs_kernels
heavy = {"triton", "transformers", "huggingface_hub", "safetensors", "matplotlib"}
print(sorted(heavy & sys.modules.keys()))
print(torch.cuda.is_initialized())
"""


def run(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, cwd=folder)


def test_import_brings_no_framework_and_asks_no_driver() -> None:
    assert run(IMPORT).stdout.split() == ["[]", "False"]


SECONDS = """
import time, torch
before = time.process_time()
import vs_kernels
print(time.process_time() - before)
"""


def test_import_takes_little_beyond_that_of_torch() -> None:
    """Of the processor: what else the machine does shall not count."""
    assert min(float(run(SECONDS).stdout) for _ in range(2)) < 0.3


SELECT = """
import torch, vs_kernels
assert vs_kernels.__file__.startswith({folder!r}), vs_kernels.__file__
plan = vs_kernels.SelectionPlan([9], [3])
for _ in range(2):
    print(vs_kernels.topk_indices(torch.arange(9.0), plan).tolist())
from vs_kernels import cli
cli.main(["info"])
"""


def copy_without_library(folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "vs_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))


def test_without_the_library_it_works_and_says_so_once(tmp_path: Path) -> None:
    copy_without_library(tmp_path)
    result = run(SELECT.format(folder=str(tmp_path)), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[6, 7, 8]\n[6, 7, 8]\n")
    assert result.stderr.count("_cpu.so was not built") == 1
    assert "CPU library   _cpu.so was not built" in result.stdout


def test_a_library_that_does_not_load_is_told_in_words(tmp_path: Path) -> None:
    copy_without_library(tmp_path)
    (tmp_path / "vs_kernels" / "_cpu.so").write_bytes(b"not a library")
    result = run(SELECT.format(folder=str(tmp_path)), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[6, 7, 8]\n[6, 7, 8]\n")
    assert result.stderr.count("_cpu.so could not be loaded") == 1
    assert "CPU library   _cpu.so could not be loaded" in result.stdout
