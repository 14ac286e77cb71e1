"""The resources of GPU kernels, read from the words of ptxas."""

import shutil

import pytest

from bench import ptxas
from bench.ptxas import Resources

# Of two kernels, one with a function that it calls, as nvcc 13.0 prints them for two architectures.
LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_80'
ptxas info    : Function properties for spill
    6160 bytes stack frame, 6188 bytes spill stores, 16352 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 6160 bytes cumulative stack size, 368 bytes cmem[0]
ptxas info    : Compile time = 1451.135 ms
ptxas info    : Compiling entry function '_Z1kPfi' for 'sm_90'
ptxas info    : Function properties for _Z1kPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 34 registers, used 1 barriers, 400 bytes cumulative stack size, 256 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 16.994 ms
ptxas info    : Function properties for _Z1fPfi
    400 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""

PTX = """.version 7.0
.target sm_80
.address_size 64
.visible .entry store(.param .u64 out)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<3>;
    .shared .align 4 .b8 room[512];
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, %tid.x;
    st.shared.u32 [room], %r1;
    bar.sync 0;
    ld.shared.u32 %r1, [room];
    st.global.u32 [%rd2], %r1;
    ret;
}
"""


def test_parse() -> None:
    assert ptxas.parse(LOG, "sm_80") == [Resources("spill", "sm_80", 32, 6188 + 16352, 6160, 0)]
    assert ptxas.parse(LOG, "sm_90") == [Resources("_Z1kPfi", "sm_90", 34, 0, 400, 256)]
    assert ptxas.parse(LOG, "sm_100") == []


needs_ptxas = pytest.mark.skipif(ptxas.find_ptxas() is None, reason="no ptxas beside Triton or on the path")


@needs_ptxas
def test_assemble() -> None:
    (found,) = ptxas.assemble(PTX, "sm_80")
    assert found.kernel == "store" and found.arch == "sm_80"
    assert found.registers > 0 and found.spill_bytes == 0 and found.stack_bytes == 0 and found.shared_bytes == 512


@needs_ptxas
def test_assemble_says_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match=r"ptxas.*room"):
        ptxas.assemble(PTX.replace(".shared .align 4 .b8 room[512];", ""), "sm_80")


def test_assemble_without_ptxas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptxas.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="ptxas"):
        ptxas.assemble(PTX, "sm_80")
