"""What every compiled library promises: symbols of the stable ABI only, and nothing of the machine that built it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = {
    "_cpu.so": {"vs_kernels_cpu_isa", "vs_kernels_cpu_set_isa"},
    "_cuda.so": {"vs_kernels_cuda_version"},
}
_FROM_COMPILER = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


def _symbols(library: Path, which: str) -> list[str]:
    output = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in output.splitlines()]


def problems(library: Path) -> list[str]:
    """In words; empty if all promises are kept. Needs nm (binutils)."""
    needed = _symbols(library, "--undefined-only")
    of_torch = [symbol for symbol in needed if re.match(r"(aoti_)?torch_", symbol)]
    # What else a library may ask for is versioned: it comes from the C and C++ runtimes.
    others = {symbol for symbol in needed if "@" not in symbol} - set(of_torch) - _FROM_COMPILER
    exported = {symbol for symbol in _symbols(library, "--defined-only") if "vs_kernels" in symbol}
    content = library.read_bytes()
    folders = [folder for folder in (str(ROOT), str(Path.home()), sys.prefix) if len(folder) > 1]
    return [
        *([] if of_torch else ["it needs nothing of torch"]),
        *(f"it needs {symbol}, which is not of torch's stable ABI" for symbol in sorted(others)),
        *(f"it exports {symbol}" for symbol in sorted(exported - EXPORTS[library.name])),
        *(f"it lacks {symbol}" for symbol in sorted(EXPORTS[library.name] - exported)),
        *(f"it holds the path {folder}" for folder in folders if folder.encode() in content),
    ]
