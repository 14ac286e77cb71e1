"""The CUDA library beside a torch without CUDA: what it registers, what it needs, and what is said where it is not
there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vs_kernels import cli, library, verify

LIBRARY = Path(library.__file__).with_name("_cuda.so")
needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} is not built: no nvcc")

# Triton serves CUDA as well: without it one sees what the library adds.
LOAD = """
import sys
sys.modules["triton"] = None
import torch, vs_kernels
from pathlib import Path
from vs_kernels import library
names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("vs_kernels::")]
has = lambda: {{name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")}}
before = has()
for torch.version.cuda in {versions!r}:
    print(library._load_cuda(Path({path!r})))
    print(sorted(name.removeprefix("vs_kernels::") for name in has() - before))
print(torch.cuda.is_initialized())
"""


def load(path: Path, *versions: str) -> list[str]:
    """What is said of the library beside a torch of each version of CUDA, and which operators it then serves."""
    code = LOAD.format(path=str(path), versions=versions)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@needs_library
def test_it_registers_the_backward_beside_a_torch_with_the_same_cuda() -> None:
    major, minor = library.cuda_version(LIBRARY)
    other, registered_by_other, problem, registered, initialised = load(LIBRARY, f"{major - 1}.0", f"{major}.0")
    assert other.startswith(f"_cuda.so is built with CUDA {major}.{minor}, this torch with {major - 1}.0")
    assert registered_by_other == "[]"
    assert problem == "None"
    assert registered == str(sorted(library.CUDA_OPERATORS))
    assert initialised == "False"


CHOICE = """
import torch
torch.version.cuda = {version!r}
from vs_kernels import cli, library
cli.devices = lambda: ["cuda"]
cli.main(["info"])
op = torch.ops.vs_kernels.straight_through_mask_backward.default
keys = torch._C.DispatchKeySet("CUDA")
f = torch.ones(6, 8)
rest = (f[:, 0], f[:, 0] > 0, f[0, :1], f[0, :1], torch.tensor([0, 6]), 1.0, 1.0, [True, True])
def serves():
    try:
        op.redispatch(keys, f, f, *rest)
    except RuntimeError as error:
        return "C++" if "tokens: expected a tensor on cuda" in str(error) else "another"
    except ForcedKernel:
        return "Triton"
class ForcedKernel(Exception): pass
def forced(*args): raise ForcedKernel
print("unforced", serves())
library.triton_kernel = lambda name: forced
with library.triton_kernels("cuda"):
    print("forced", serves())
print("afterwards", serves())
"""


@needs_library
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_it_goes_before_triton_unless_that_is_forced() -> None:
    major, minor = library.cuda_version(LIBRARY)
    lines = {}
    for version in (f"{major}.0", f"{major + 1}.0"):
        code = CHOICE.format(version=version)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        lines[version] = [line.split() for line in done.stdout.splitlines()]
    loaded, refused = lines.values()
    assert ["CUDA", "library", "loaded,", "CUDA", f"{major}.{minor}"] in loaded
    for name in verify.CALLS:
        assert [name, "Triton"] in loaded
    for name in library.CUDA_OPERATORS:
        assert [name, "C++"] in loaded and [name, "Triton"] in refused
    assert loaded[-3:] == [["unforced", "C++"], ["forced", "Triton"], ["afterwards", "C++"]]
    assert any(f"_cuda.so is built with CUDA {major}.{minor}" in " ".join(line) for line in refused)


def test_a_library_that_does_not_load_is_told_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "_cuda.so"
    assert load(broken, "13.0")[0].startswith("_cuda.so was not built (no nvcc")
    broken.write_bytes(b"no library, vs_kernels CUDART_VERSION 13020")
    assert library.cuda_version(broken) == (13, 2)
    assert load(broken, "13.0")[0].startswith("_cuda.so could not be loaded: ")


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


REFUSE = """
import sys
sys.modules["triton"] = None
import torch, vs_kernels
torch.ops.load_library({path!r})
f = torch.ones(6, 8)
pools = dict(scores=f[:, 0], pivots=f[0, :1], shifts=f[0, :1], cu_lengths=torch.tensor([0, 6]))
forms = dict(
    gather=dict(grad_kept=f[:2], indices=torch.tensor([1, 3]), scale=1.0),
    mask=dict(grad_out=f, mask=f[:, 0] > 0, dropped_scale=0.5),
)
keys = torch._C.DispatchKeySet("CUDA")
for name, arguments in forms.items():
    op = getattr(torch.ops.vs_kernels, f"straight_through_{{name}}_backward").default
    for output_mask in ([True, True], [True]):
        try:
            op.redispatch(keys, tokens=f, temperature=1.0, output_mask=output_mask, **pools, **arguments)
        except RuntimeError as error:
            print(str(error).splitlines()[0])
"""


@needs_library
def test_its_kernels_refuse_what_they_cannot_take() -> None:
    """Called on a CPU past the dispatcher: they check before they launch anything."""
    code = REFUSE.format(path=str(LIBRARY))
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = ["tokens: expected a tensor on cuda", "output_mask: got 1 entries, expected 2"] * 2
    assert len(output.splitlines()) == len(expected)
    assert all(words in line for words, line in zip(expected, output.splitlines(), strict=True)), output
