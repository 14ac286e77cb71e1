"""Tile sizes: a plain function of the kernel and the shape, from a table per architecture.

``vs-kernels tune`` measures candidates on the GPU at hand and writes a file that takes precedence over the table.
"""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program of a kernel works on at a time.

    Attributes:
        rows, columns: of tokens or weights, powers of two.
        num_warps: 32 threads each (64 on AMD).
    """

    rows: int
    columns: int
    num_warps: int


# Without a software pipeline the bytes that a program loads at a time, 16 KiB of bfloat16, must cover the latency: with
# one or two programs on each of 132 processors 2 to 4 MB are in flight, as 3.35 TB/s times 0.7 microseconds ask for.
DEFAULT = {
    "column_sums": Tile(128, 64, 4),
    "project": Tile(8, 1024, 4),
    "directions": Tile(256, 32, 8),
    "row_dots": Tile(8, 1024, 4),
    "outer_products": Tile(8, 512, 4),
    "rows": Tile(4, 1024, 4),  # kernels that write rows: gather, scatter, mask, gradients of tokens
}
# More than twice the bandwidth behind the same latency: twice the bytes in flight.
BLACKWELL = DEFAULT | {
    "column_sums": Tile(256, 64, 8),
    "project": Tile(16, 1024, 8),
    "directions": Tile(512, 32, 16),
    "row_dots": Tile(16, 1024, 8),
}
# A wavefront has 64 threads: half as many of them.
AMD = {kernel: tile._replace(num_warps=tile.num_warps // 2) for kernel, tile in DEFAULT.items()}
TABLE = {"sm_80": DEFAULT, "sm_90": DEFAULT, "sm_100": BLACKWELL, "sm_120": DEFAULT, "gfx942": AMD}

FILE_VARIABLE = "VS_KERNELS_TILES"


def default_file() -> Path:
    """Where ``vs-kernels tune`` writes: the path in VS_KERNELS_TILES, else in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(FILE_VARIABLE) or cache / "vs_kernels" / "tiles.json")


def tile_of(kernel: str, width: int, device: torch.device) -> Tile:
    """The tile of ``kernel`` for rows of ``width`` columns: never wider than the row, rounded up to a power of two."""
    arch = architecture(device)
    tile = _tuned(default_file()).get(arch, {}).get(kernel) or TABLE.get(arch, DEFAULT)[kernel]
    return tile._replace(columns=min(tile.columns, max(16, next_power_of_two(width))))


@functools.cache
def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942", …; "interpreter" on a CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def _tuned(path: Path) -> dict[str, dict[str, Tile]]:
    """Tiles by architecture and kernel, as measured; none without a file.

    Raises:
        ValueError: the file is there and does not hold what ``vs-kernels tune`` writes.
    """
    if not path.is_file():
        return {}
    try:
        tables = json.loads(path.read_text())
        return {arch: {name: Tile(*map(int, tile)) for name, tile in table.items()} for arch, table in tables.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: got {error}, expected what `vs-kernels tune` writes") from error


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
