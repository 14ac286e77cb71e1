"""The gates on what the CUDA kernels take of each architecture."""

import pytest
from vs_kernels_nvcc import find_nvcc

from bench import compile_cuda
from bench.ptxas import Resources


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: CUDA_HOME, the path, /usr/local/cuda")
def test_no_spills_and_the_planned_occupancy() -> None:
    found = [row for _, rows in compile_cuda.compiled(compile_cuda.jobs()) for row in rows]
    kernels = {row.kernel for row in found}
    assert len(kernels) == 19 and "straight_through_rows<BFloat16, gather, scores and tokens>" in kernels
    assert {(row.kernel, row.arch) for row in found} == {
        (name, arch) for name in kernels for arch in compile_cuda.ARCHS
    }
    assert compile_cuda.problems(found) == []


def test_problems_are_found() -> None:
    good = Resources("straight_through_rows<Float32, mask, scores>", "sm_90", 85, 0, 0, 512)
    assert compile_cuda.problems([good]) == []
    assert "86 registers, at most 85" in compile_cuda.problems([good._replace(registers=86)])[0]
    assert "8 bytes of spills" in compile_cuda.problems([good._replace(spill_bytes=8)])[0]
    assert "16 bytes of stack" in compile_cuda.problems([good._replace(stack_bytes=16)])[0]
