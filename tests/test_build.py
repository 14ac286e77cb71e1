"""What the build promises: one library for every torch >= 2.10, nothing of the build machine in it, and a package
that installs without a compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import library_audit
import pytest
from vs_kernels_nvcc import find_nvcc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("build_backend", "csrc", "vs_kernels", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


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


@pytest.mark.parametrize("name", library_audit.EXPORTS)
def test_library_keeps_its_promises(name: str):
    """Symbols of the stable ABI only, no export that nobody asked for, no path of this machine."""
    library = ROOT / "vs_kernels" / name
    if not library.is_file() or shutil.which("nm") is None:
        pytest.skip(f"{library} is not built, or there is no nm (binutils) on the path")
    assert library_audit.problems(library) == []


def test_broken_promises_are_found(tmp_path: Path):
    if shutil.which("c++") is None or shutil.which("nm") is None:
        pytest.skip("no c++ or no nm on the path")
    source, library = tmp_path / "broken.cpp", tmp_path / "_cpu.so"
    source.write_text(
        'extern "C" int at_internal(); extern "C" int vs_kernels_secret() { return at_internal(); }'
        f'extern "C" const char* vs_kernels_cpu_isa() {{ return "{ROOT}"; }}'
    )
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    assert {
        "it needs nothing of torch",
        "it needs at_internal, which is not of torch's stable ABI",
        "it lacks vs_kernels_cpu_set_isa",
        "it exports vs_kernels_secret",
        f"it holds the path {ROOT}",
    } <= set(library_audit.problems(library))


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


def test_wheel_from_source_archive_holds_the_libraries(checkout: Path, tmp_path: Path):
    if shutil.which("c++") is None:
        pytest.skip("no c++ on the path")
    cuda = find_nvcc() is not None
    archive = run_hook(checkout, "build_sdist")
    shutil.unpack_archive(archive, tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    stale = unpacked / "build" / "lib" / "vs_kernels" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    # CUDA is built where nvcc is; one architecture is enough here.
    wheel = run_hook(unpacked, "build_wheel", VS_KERNELS_CUDA_ARCHS="90")
    names = set(zipfile.ZipFile(wheel).namelist())
    libraries = sorted(name for name in names if name.endswith(".so"))
    assert "-cp310-abi3-linux_" in wheel.name
    assert libraries == ["vs_kernels/_cpu.so", *(["vs_kernels/_cuda.so"] if cuda else [])]
    assert modules(checkout) <= names
    assert "vs_kernels/stale.py" not in names
    for name in libraries:
        assert library_audit.problems(Path(zipfile.ZipFile(wheel).extract(name, tmp_path))) == []


def test_source_archive_makes_the_wheel_of_the_checkout(checkout: Path, tmp_path: Path):
    """Byte for byte, and with every source that the libraries are built from."""
    archive = run_hook(checkout, "build_sdist")
    shutil.unpack_archive(archive, tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    without_libraries = {"VS_KERNELS_CPU": "0", "VS_KERNELS_CUDA": "0"}
    wheels = [zipfile.ZipFile(run_hook(folder, "build_wheel", **without_libraries)) for folder in (checkout, unpacked)]
    ours, theirs = ({name: wheel.read(name) for name in wheel.namelist()} for wheel in wheels)
    assert ours == theirs
    for folder in ("csrc", "build_backend"):
        for source in filter(Path.is_file, (ROOT / folder).rglob("*")):
            if "__pycache__" not in source.parts:
                assert (unpacked / source.relative_to(ROOT)).read_bytes() == source.read_bytes()


def test_cuda_is_left_out_or_demanded(checkout: Path):
    without_nvcc = {"CUDA_HOME": "/nonexistent", "VS_KERNELS_CPU": "0"}
    for choice in ({"VS_KERNELS_CPU": "0", "VS_KERNELS_CUDA": "0"}, without_nvcc):
        wheel = run_hook(checkout, "build_wheel", **choice)
        assert wheel.name.endswith("-py3-none-any.whl")
        assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    with pytest.raises(AssertionError, match="VS_KERNELS_CUDA=1 demands the CUDA library"):
        run_hook(checkout, "build_wheel", VS_KERNELS_CUDA="1", **without_nvcc)


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: CUDA_HOME, the path, /usr/local/cuda")
def test_architectures_are_numbers(checkout: Path):
    with pytest.raises(AssertionError, match="VS_KERNELS_CUDA_ARCHS: got 'hopper', expected numbers such as '80 90"):
        run_hook(checkout, "build_wheel", VS_KERNELS_CPU="0", VS_KERNELS_CUDA_ARCHS="hopper")


def test_compile_error_is_loud(checkout: Path):
    if shutil.which("c++") is None:
        pytest.skip("no c++ on the path")
    (checkout / "csrc" / "cpu" / "broken.cpp").write_text("this is not C++")
    with pytest.raises(AssertionError, match=r"broken\.cpp"):
        run_hook(checkout, "build_wheel", VS_KERNELS_CUDA="0")
