"""Builds the C++ and the CUDA library; everything else about the package is in pyproject.toml.

Environment: VS_KERNELS_CPU=0 leaves the CPU library out, VS_KERNELS_CUDA=0 the CUDA library, and VS_KERNELS_CUDA=1
demands it; CXX, CUDA_HOME and VS_KERNELS_CUDA_ARCHS choose compilers and architectures.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import vs_kernels_nvcc  # noqa: E402
from vs_kernels_build import torch_root  # noqa: E402

CXX_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"),
]
ISA_FLAGS = {"baseline": []}
if platform.machine() == "x86_64":
    # prefetchw does nothing on the few such machines that lack it
    ISA_FLAGS["avx2"] = ["-march=x86-64-v3", "-mprfchw"]
    # GCC 12 takes the deliberately undefined registers of its own AVX-512 header for mistakes.
    ISA_FLAGS["avx512"] = ["-march=x86-64-v4", "-mprfchw", "-mprefer-vector-width=512", "-Wno-maybe-uninitialized"]


NO_TORCH = "vs_kernels: no torch >= 2.10 to build against"


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, or None where there is none."""
    for name in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    return None


def find_ninja() -> str | None:
    """A ninja that runs: on the path, or beside the target environment's Python, which pip's isolation hides."""
    beside_python = str(Path(sysconfig.get_path("scripts"), "ninja"))
    for ninja in filter(None, map(shutil.which, ("ninja", beside_python))):
        if subprocess.run([ninja, "--version"], capture_output=True).returncode == 0:
            return ninja
    return None


class BuildLibraries(build_ext):
    """Plain shared libraries: no Python symbols, loaded with torch.ops.load_library."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext):
        torch = torch_root()
        if torch is None:
            raise SystemExit(f"{NO_TORCH}; install torch, or set VS_KERNELS_CPU=0 and VS_KERNELS_CUDA=0")
        # Error checks carry the path of their source: keep the build machine's folders out of the library.
        no_paths = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, torch / "include")]
        commands = cuda_commands if ext.name == "vs_kernels._cuda" else cpu_commands
        compile_commands, link_command = commands(torch, no_paths)

        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        # A fixed folder, where an editable build has a temporary one: the next build compiles only what changed.
        objects = ROOT / "build" / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        ninja = find_ninja()
        if ninja:
            (objects / "build.ninja").write_text(ninja_file(compile_commands, link_command, library))
            subprocess.run([ninja], cwd=objects, check=True)
        else:
            run_commands(compile_commands, link_command, library, objects)


def cpu_commands(torch: Path, no_paths: list[str]) -> tuple[dict[Path, list[str]], list[str]]:
    """How each source of the C++ library is compiled, and how the objects become a library."""
    compiler = [*find_compiler(), *CXX_FLAGS, *no_paths]
    torch_flags = vs_kernels_nvcc.torch_flags(torch)
    compile_commands = {
        source: [*compiler, *torch_flags, "-c", str(source)] for source in sorted(ROOT.glob("csrc/cpu/*.cpp"))
    }
    for isa, flags in ISA_FLAGS.items():
        source = ROOT / f"csrc/cpu/simd/{isa}.cpp"
        compile_commands[source] = [*compiler, *flags, "-c", str(source)]
    link = ["-shared", f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
    return compile_commands, [*compiler, *link]


def cuda_commands(torch: Path, no_paths: list[str]) -> tuple[dict[Path, list[str]], list[str]]:
    """The same for the CUDA library, with the CUDA runtime in it."""
    nvcc = [vs_kernels_nvcc.find_nvcc(), "-ccbin", find_compiler()[0], "-cudart", "static"]
    compiler = [*nvcc, *vs_kernels_nvcc.library_flags(vs_kernels_nvcc.architectures())]
    compiler += [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden", *no_paths)]
    compiler += vs_kernels_nvcc.torch_flags(torch)
    compile_commands = {ROOT / source: [*compiler, "-c", str(ROOT / source)] for source in vs_kernels_nvcc.SOURCES}
    # Without a device link, which has nothing to do here and leaves paths in the library.
    link = ["-shared", "--no-device-link", f"-L{torch}/lib", "-ltorch"]
    link += [f"-Xlinker={flag}" for flag in ("--no-as-needed", "--exclude-libs=ALL")]
    return compile_commands, [*nvcc, *link]


def ninja_file(compile_commands: dict[Path, list[str]], link_command: list[str], library: Path) -> str:
    """Rules by which ninja compiles in parallel, and only what changed: a source, a header or a flag."""

    def escape(path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    objects = {source: f"{source.stem}.o" for source in compile_commands}
    lines = ["rule compile", "  command = $compile -MMD -MF $out.d -o $out", "  depfile = $out.d", "  deps = gcc"]
    lines += ["rule link", f"  command = {command(link_command)} $in -o $out"]
    for source, words in compile_commands.items():
        lines += [f"build {objects[source]}: compile {escape(source)}", f"  compile = {command(words)}"]
    lines += [f"build {escape(library)}: link {' '.join(objects.values())}", ""]
    return "\n".join(lines)


def run_commands(compile_commands: dict[Path, list[str]], link_command: list[str], library: Path, folder: Path) -> None:
    """The same without ninja: everything, in parallel."""
    objects = {source: f"{source.stem}.o" for source in compile_commands}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(subprocess.run, [*words, "-o", objects[source]], cwd=folder, check=True)
            for source, words in compile_commands.items()
        ]
        for job in jobs:
            job.result()
    subprocess.run([*link_command, *objects.values(), "-o", str(library)], cwd=folder, check=True)


def libraries() -> list[Extension]:
    names = []
    if sys.platform == "linux" and find_compiler() is None:
        print("vs_kernels: no C++ compiler found, installing without compiled libraries", file=sys.stderr)
    elif sys.platform == "linux":
        names += ["vs_kernels._cpu"] if os.environ.get("VS_KERNELS_CPU") != "0" else []
        names += ["vs_kernels._cuda"] if wants_cuda() else []
    if os.environ.get("VS_KERNELS_CUDA") == "1" and "vs_kernels._cuda" not in names:
        raise SystemExit(
            "vs_kernels: VS_KERNELS_CUDA=1 demands the CUDA library, which needs Linux, nvcc and a C++ compiler"
        )
    return [Extension(name, sources=[], py_limited_api=True) for name in names]


def wants_cuda() -> bool:
    """Whether there is a CUDA compiler, and nobody says that it shall not be used."""
    if os.environ.get("VS_KERNELS_CUDA") == "0":
        return False
    if vs_kernels_nvcc.find_nvcc() is None:
        print("vs_kernels: no nvcc found, installing without the CUDA library", file=sys.stderr)
        return False
    return True


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
