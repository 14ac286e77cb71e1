"""Triton kernels compiled for an architecture that need not be here: registers, spills, width of accesses."""

import os
import re
from typing import NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import ptxas
from bench.triton_launches import Launch

ACCESS = re.compile(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+) ")
AMD_ACCESS = re.compile(r"(?:global|buffer)_(?:load|store)_(dwordx4|dwordx2|dword|ushort|short|ubyte|byte)\S* ")
AMD_BYTES = {"dwordx4": 16, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1, "byte": 1}
AMD_RESOURCE = {"registers": r"\.vgpr_count:\s+(\d+)", "spill_bytes": r"\.vgpr_spill_count:\s+(\d+)"}


class Compiled(NamedTuple):
    """One kernel on one architecture.

    Attributes:
        kernel, arch: names.
        threads: of a program.
        registers: of a thread.
        spill_bytes: of a thread, stores and loads.
        shared_bytes: of a program.
        widest: bytes of the widest access to global memory.
    """

    kernel: str
    arch: str
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    widest: int


def compile_for(launch: Launch, arch: str) -> Compiled:
    """``launch`` as it would be compiled on a GPU of architecture "sm_…" or "gfx…"."""
    nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs=launch.constexprs,
        attrs={(position,): [["tt.divisibility", 16]] for position in launch.divisible},
    )
    options = dict(launch.options)
    kernel = triton.compile(source, target=target, options=options)
    threads = options.get("num_warps", 4) * target.warp_size
    shared = kernel.metadata.shared
    if nvidia:
        ptx = kernel.asm["ptx"]
        found = ptxas.assemble(ptx, re.search(r"\.target (\w+)", ptx)[1])[0]
        widest = max((int(count or 1) * int(bits) // 8 for count, bits in ACCESS.findall(ptx)), default=0)
        return Compiled(launch.name, arch, threads, found.registers, found.spill_bytes, shared, widest)
    assembly = kernel.asm["amdgcn"]
    registers, spills = (int(re.search(pattern, assembly)[1]) for pattern in AMD_RESOURCE.values())
    widest = max((AMD_BYTES[kind] for kind in AMD_ACCESS.findall(assembly)), default=0)
    return Compiled(launch.name, arch, threads, registers, 4 * spills, shared, widest)
