"""The CUDA kernels of the straight-through backward on the host: results by fibers, races by threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from straight_through_cases import DTYPES, Case
from vs_kernels_build import torch_root
from vs_kernels_nvcc import SOURCES, compile_source, find_nvcc

from host_shim.device import BUILD, HostDevice, compile_on_host, host_module
from vs_kernels import SelectionPlan

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the path")


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_ragged_pools(data: st.DataObject) -> None:
    """As on a CPU and by the definition, cut as a launch on a GPU would be or in any other way."""
    lengths = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
    ks = [data.draw(st.integers(0, length)) for length in lengths]
    case = Case.make(
        data.draw(st.sampled_from(["gather", "mask"])),
        SelectionPlan(lengths, ks),
        data.draw(st.sampled_from([1, 8, 20, 33, 136])),
        data.draw(st.sampled_from(list(DTYPES.values()))),
        temperature=data.draw(st.sampled_from([0.05, 0.5, 3.0])),
        factor=data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        noise=data.draw(st.sampled_from([0.0, 2.0])),
        padding=data.draw(st.sampled_from([0, 4])),
        seed=data.draw(st.integers(0, 99)),
    )
    total, width = case.tokens.shape
    chunk_rows, warps_per_row, _, slices = host_module().geometry(
        total, len(lengths), width * case.tokens.element_size()
    )
    if data.draw(st.booleans()):
        chunk_rows, warps_per_row = data.draw(st.integers(1, 32)), data.draw(st.sampled_from([1, 4]))
    grad_tokens, grad_scores = HostDevice(case, chunk_rows, warps_per_row).backward(slices)
    case.check(grad_tokens, grad_scores)
    on_cpu_tokens, on_cpu_scores = case.on_cpu()
    torch.testing.assert_close(grad_tokens, on_cpu_tokens, rtol=0, atol=0)
    torch.testing.assert_close(grad_scores, on_cpu_scores, rtol=1e-4, atol=4e-6 * float(on_cpu_scores.abs().max()))


@pytest.mark.parametrize("form", ["gather", "mask"])
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted(form: str, wanted: tuple[bool, bool]) -> None:
    case = Case.make(form, SelectionPlan([30, 12], [7, 3]), 27, torch.float16, padding=5)
    device = HostDevice(case)
    device.run_rows(*wanted)
    if wanted[1]:
        device.run_pools()
    written = {name: not bool(device.results[name].isnan().any()) for name in ("grad_tokens", "grad_scores")}
    assert written == {"grad_tokens": wanted[0], "grad_scores": wanted[1]}
    case.check(*(device.results[name] if written[name] else None for name in written))


@pytest.mark.parametrize("total", [1, 31, 1024, 4096, 70_000, 1_000_000, 3_000_000_000])
@pytest.mark.parametrize("pools", [1, 7, 1000])
@pytest.mark.parametrize("row_bytes", [2, 1024, 7168, 40_000])
def test_geometry(total: int, pools: int, row_bytes: int) -> None:
    chunk_rows, warps_per_row, chunks, slices = host_module().geometry(total, pools, row_bytes)
    assert 1 <= chunk_rows <= 32 and warps_per_row in (1, 4)
    assert (chunks - 1) * chunk_rows < total <= chunks * chunk_rows
    assert chunks < 2**31 and 1 <= slices <= 128
    # enough blocks for a large GPU, unless there are not as many groups of rows
    assert chunks >= min(1024, -(-total * warps_per_row // 4))


# ThreadSanitizer wants addresses that are not random; some kernels give it none.
RUN = ["setarch", "-R"] if shutil.which("setarch") else []


def run_threads(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    program = compile_on_host("threads.cpp", name, "-g1", "-pthread", "-DON_HOST_THREADS", *flags)
    options = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([*RUN, str(program)], env=options, capture_output=True, text=True, timeout=300)


def test_no_races_between_threads() -> None:
    done = run_threads("threads", "-fsanitize=thread")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no wrong result" in done.stdout


def test_a_missing_barrier_is_found() -> None:
    done = run_threads("threads_without_barrier", "-fsanitize=thread", "-DON_HOST_PLANT_RACE")
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert "straight_through.cuh" in done.stderr or "warp.cuh" in done.stderr


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: CUDA_HOME, the path, /usr/local/cuda")
def test_the_operators_with_their_host_code() -> None:
    """From the dispatcher to the launches: checks, strides, scratch memory, grids and streams."""
    torch_folder = torch_root()
    assert torch_folder is not None
    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD.parents[1] / SOURCES[0]
    compile_source(source, torch_folder, BUILD / "operators.o", "-c", "-arch=compute_90", "-Xcompiler=-fPIC")
    library = compile_on_host(
        "driver.cpp",
        "operators.so",
        *("-shared", "-fPIC", str(BUILD / "operators.o")),
        *("-Wl,-Bsymbolic", f"-L{torch_folder}/lib", "-Wl,--no-as-needed", "-ltorch"),
    )
    program = Path(__file__).with_name("operators.py")
    done = subprocess.run([sys.executable, str(program), str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no wrong result" in done.stdout
