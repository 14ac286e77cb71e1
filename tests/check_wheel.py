"""``python tests/check_wheel.py WHEEL``: looks at the wheel's name, size and libraries, installs it in an environment
that shares only torch with this one, and runs it there."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from pathlib import Path

from library_audit import ROOT, problems

sys.path.insert(0, str(ROOT / "build_backend"))
from vs_kernels_nvcc import find_nvcc

MOST_BYTES = 5_000_000
# Triton serves CUDA as well: without it one sees what the library adds.
RUN = """
import sys
sys.modules["triton"] = None
import torch, vs_kernels
from vs_kernels import cli, library
assert vs_kernels.__file__.startswith(sys.prefix), vs_kernels.__file__
assert library.CPU_PROBLEM is None, library.CPU_PROBLEM
plan = vs_kernels.SelectionPlan([9, 4], [3, 1])
assert vs_kernels.topk_indices(torch.arange(13.0), plan).tolist() == [6, 7, 8, 12]
if torch.version.cuda:
    assert library.CUDA_PROBLEM is None, library.CUDA_PROBLEM
else:
    for name in library.CUDA_OPERATORS:
        assert not torch._C._dispatch_has_kernel_for_dispatch_key("vs_kernels::" + name, "CUDA"), name
    if {cuda}:
        torch.ops.load_library(str(library._CUDA_LIBRARY))
        for name in library.CUDA_OPERATORS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key("vs_kernels::" + name, "CUDA"), name
raise SystemExit(cli.main(["info"]) or cli.main(["verify"]))
"""


def main(wheel: Path) -> None:
    start = time.monotonic()
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.2f} MB")
    require("-cp310-abi3-manylinux_" in wheel.name, "expected the tags cp310-abi3 and manylinux")
    require(size <= MOST_BYTES, f"expected at most {MOST_BYTES / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            libraries = [name for name in archive.namelist() if ".so" in name]
            archive.extractall(Path(folder, "content"), libraries)
        names = {name.rpartition("/")[2] for name in libraries}
        cuda = os.environ.get("VS_KERNELS_CUDA") != "0" and find_nvcc() is not None
        wanted = {"_cpu.so", "_cuda.so"} if cuda else {"_cpu.so"}
        require(names == wanted, f"got the libraries {sorted(names)}, expected {sorted(wanted)}")
        for name in libraries:
            found = problems(Path(folder, "content", name))
            require(not found, f"{name}: {'; '.join(found)}")
        python = environment(Path(folder, "environment"))
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel.resolve())]
        subprocess.run([python, *install], check=True, cwd=folder)
        script = RUN.format(cuda=cuda)
        subprocess.run([python, "-W", "error::RuntimeWarning", "-c", script], check=True, cwd=folder)
    print(f"the wheel works ({', '.join(sorted(names))}); {time.monotonic() - start:.0f} s")


def environment(folder: Path) -> Path:
    """A new one in which torch and what it needs are found where they are installed, but this checkout is not: paths
    named in a .pth file are not searched for others."""
    venv.create(folder, with_pip=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "torch_is_there.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def require(ok: bool, message: str) -> None:
    if not ok:
        sys.exit(message)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python tests/check_wheel.py WHEEL; got {sys.argv[1:]}")
    main(Path(sys.argv[1]))
