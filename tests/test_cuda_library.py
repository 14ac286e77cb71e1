"""The CUDA library beside a torch without CUDA: what it registers, what it needs, and what is said where it is not
there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vs_kernels import cli, library

LIBRARY = Path(library.__file__).with_name("_cuda.so")
needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} is not built: no nvcc")

LOAD = """
import torch, vs_kernels
from vs_kernels import library, verify
from pathlib import Path
names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("vs_kernels::")]
has = lambda: {{name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")}}
before = has()
torch.version.cuda = "{major}.0"
print(library._load_cuda(Path({path!r})))
print(sorted(name.removeprefix("vs_kernels::") for name in has() - before))
print(torch.cuda.is_initialized())
"""


def load(path: Path, major: int) -> list[str]:
    code = LOAD.format(path=str(path), major=major)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@needs_library
def test_it_loads_and_registers_the_backward() -> None:
    problem, registered, initialised = load(LIBRARY, library.cuda_version(LIBRARY)[0])
    assert problem == "None"
    assert registered == str(sorted(library.CUDA_OPERATORS))
    assert initialised == "False"


@needs_library
def test_another_major_version_of_cuda_is_not_loaded() -> None:
    major, minor = library.cuda_version(LIBRARY)
    problem, registered, _ = load(LIBRARY, major - 1)
    assert problem.startswith(f"_cuda.so is built with CUDA {major}.{minor}, this torch with {major - 1}.0")
    assert registered == "[]"


def test_a_library_that_does_not_load_is_told_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "_cuda.so"
    broken.write_bytes(b"no library, vs_kernels CUDART_VERSION 13020")
    assert library.cuda_version(broken) == (13, 2)
    assert load(broken, 13)[0].startswith("_cuda.so could not be loaded: ")
    broken.unlink()
    assert load(broken, 13)[0].startswith("_cuda.so was not built (no nvcc")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_without_cuda_in_torch_it_is_not_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert library.CUDA_PROBLEM == "_cuda.so is not loaded beside a torch without CUDA"
    assert cli.main(["info"]) == 0
    assert f"CUDA library  {library.CUDA_PROBLEM}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["straight_through_gather_backward", "soft_topk"])
def test_one_warning_at_first_use_on_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(library, "CUDA_PROBLEM", "_cuda.so was not built")
    library._warn_once.cache_clear()
    calls: list[torch.Tensor] = []
    kernel = library.without_cuda_library(name, calls.append)
    with FakeTensorMode():
        on_cpu, on_cuda = torch.empty(1), torch.empty(1, device="cuda")
    with pytest.warns(RuntimeWarning) as told:
        for tensor in (on_cpu, on_cuda, on_cuda):
            kernel(tensor)
        library._warn_once("the end")
    expected = ["vs_kernels runs the straight-through backward without its CUDA library: _cuda.so was not built"]
    assert [str(warning.message) for warning in told] == (expected if "backward" in name else []) + ["the end"]
    assert calls == [on_cpu, on_cuda, on_cuda]


def run_operator(name: str, **arguments: object) -> str:
    """The error of a CUDA kernel for arguments on the CPU, which it checks before it launches anything."""
    code = f"""
import torch, vs_kernels
torch.ops.load_library({str(LIBRARY)!r})
f = torch.ones(6, 8)
arguments = dict(tokens=f, scores=f[:, 0], pivots=f[0, :1], shifts=f[0, :1], cu_lengths=torch.tensor([0, 6]),
                 temperature=0.5, output_mask=[True, True])
if {name!r} == "gather":
    arguments |= dict(grad_kept=f[:2], indices=torch.tensor([1, 3]), scale=1.0)
else:
    arguments |= dict(grad_out=f, mask=f[:, 0] > 0, dropped_scale=0.5)
arguments |= {arguments!r}
op = getattr(torch.ops.vs_kernels, "straight_through_{name}_backward").default
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
try:
    op.redispatch(keys, **arguments)
except RuntimeError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@needs_library
@pytest.mark.parametrize("form", ["gather", "mask"])
def test_tensors_elsewhere_are_refused(form: str) -> None:
    assert "tokens: expected a tensor on cuda" in run_operator(form)
    assert "output_mask: got 1 entries, expected 2" in run_operator(form, output_mask=[True])
