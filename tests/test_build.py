"""What the build promises: one library for every torch >= 2.10, nothing of the build machine in it, and a package
that installs without a compiler."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "vs_kernels" / "_cpu.so"
SOURCES = ("build_backend", "csrc", "vs_kernels", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} is not built")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm (binutils) on the path")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, so that a build leaves nothing in the tree under test."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in filter(lambda name: (ROOT / name).exists(), SOURCES):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def call_backend(checkout: Path, expression: str, **environment: str) -> str:
    """Evaluates an expression of the in-tree PEP 517 backend ``b`` in a fresh process, as pip does."""
    script = f"import sys; sys.path.insert(0, 'build_backend'); import vs_kernels_build as b; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def run_hook(checkout: Path, hook: str, **environment: str) -> Path:
    (checkout / "out").mkdir(exist_ok=True)
    return checkout / "out" / call_backend(checkout, f"b.{hook}('out')", **environment)


def modules(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob("vs_kernels/**/*.py")}


@needs_library
@needs_nm
def test_library_needs_only_the_stable_abi_of_torch():
    output = subprocess.run(["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in output.stdout.splitlines()]
    shims = [symbol for symbol in symbols if re.match(r"(aoti_)?torch_", symbol)]
    # What else a library may ask for is versioned: it comes from the C and C++ runtimes.
    unversioned = [symbol for symbol in symbols if "@" not in symbol and symbol not in shims]
    assert shims
    assert set(unversioned) <= {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


@needs_library
@needs_nm
def test_library_exports_only_its_two_functions():
    output = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in output.stdout.splitlines() if "vs_kernels" in line}
    assert exported == {"vs_kernels_cpu_isa", "vs_kernels_cpu_set_isa"}


@needs_library
def test_library_holds_no_path_of_the_build_machine():
    content = LIBRARY.read_bytes()
    folders = {str(ROOT), str(Path.home()), sys.prefix}
    assert not [folder for folder in folders if len(folder) > 1 and folder.encode() in content]


def test_build_asks_for_torch_only_where_there_is_none(checkout: Path):
    assert "torch" not in call_backend(checkout, "b.get_requires_for_build_wheel()")
    without_torch = "setattr(b, 'torch_root', lambda: None) or b.get_requires_for_build_wheel()"
    assert "torch>=2.10" in call_backend(checkout, without_torch)


def test_wheel_without_compiler_is_pure_python(checkout: Path):
    # A library that an editable build left in the tree must not slip in.
    (checkout / "vs_kernels" / "_cpu.so").write_bytes(b"stale")
    wheel = run_hook(checkout, "build_wheel", CXX="/nonexistent")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith(".so")]
    assert modules(checkout) <= names


def test_wheel_from_source_archive_holds_the_library(checkout: Path, tmp_path: Path):
    if shutil.which("c++") is None:
        pytest.skip("no c++ on the path")
    archive = run_hook(checkout, "build_sdist")
    shutil.unpack_archive(archive, tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    stale = unpacked / "build" / "lib" / "vs_kernels" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    wheel = run_hook(unpacked, "build_wheel")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "-cp310-abi3-linux_" in wheel.name
    assert [name for name in names if name.endswith(".so")] == ["vs_kernels/_cpu.so"]
    assert modules(checkout) <= names
    assert "vs_kernels/stale.py" not in names


def test_compile_error_is_loud(checkout: Path):
    if shutil.which("c++") is None:
        pytest.skip("no c++ on the path")
    (checkout / "csrc" / "cpu" / "broken.cpp").write_text("this is not C++")
    with pytest.raises(AssertionError, match=r"broken\.cpp"):
        run_hook(checkout, "build_wheel")
