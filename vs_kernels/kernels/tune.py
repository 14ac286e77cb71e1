"""Tile sizes measured on the GPU at hand: what ``vs-kernels tune`` does."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch

import vs_kernels
from vs_kernels import SelectionPlan, verify
from vs_kernels.kernels import tiles
from vs_kernels.kernels.tiles import DEFAULT, TABLE, Tile

MOST_ELEMENTS = 2**15  # of a tile: more would not fit the registers of a program
# The operator that shows the time of each kernel; the backward as well where it names gradients.
OPERATORS = {
    "column_sums": "importance_scores",
    "project": "importance_scores",
    "directions": "importance_scores",
    "row_dots": "importance_scores",
    "outer_products": "importance_scores",
    "rows": "straight_through_mask",
}
BACKWARD = ("outer_products",)


def tune(
    device: torch.device, width: int, length: int, file: Path, timer: Callable[[Callable[[], object]], float]
) -> Iterator[tuple[str, Tile, float, float]]:
    """Measure candidates for every kernel and write the fastest into ``file`` as they are found.

    Args:
        device: the GPU.
        width, length: columns and number of the tokens to measure on, in bfloat16.
        file: tiles by architecture; those of other architectures in it stay.
        timer: seconds of a call.

    Yields:
        kernel, its fastest tile, the seconds of the operator with it, and with the tile from the table.
    """
    arch = tiles.architecture(device)
    plan = SelectionPlan.from_budget([length], 0.2)
    inputs = verify.Inputs.random(plan, width, width // 2, torch.bfloat16, str(device))
    table = TABLE.get(arch, DEFAULT)
    best: dict[str, Tile] = {}
    for kernel, operator in OPERATORS.items():
        seconds = {}
        for tile in candidates(table[kernel]):
            with tiles.forced(best | {kernel: tile}):
                leaves = inputs.leaves() if kernel in BACKWARD else inputs
                seconds[tile] = timer(partial(verify.results, vs_kernels, operator, leaves))
        best[kernel] = min(seconds, key=seconds.__getitem__)
        _write(file, arch, best)
        yield kernel, best[kernel], seconds[best[kernel]], seconds[table[kernel]]


def candidates(tile: Tile) -> list[Tile]:
    """The tile, and those with half and twice its rows, columns and warps."""
    around = (0, -1, 1)
    found = []
    for rows, columns, warps in product(around, around, around):
        changed = Tile(int(tile.rows * 2.0**rows), int(tile.columns * 2.0**columns), int(tile.num_warps * 2.0**warps))
        if min(changed) >= 1 and changed.num_warps <= 16 and changed.rows * changed.columns <= MOST_ELEMENTS:
            found.append(changed)
    return found


def _write(file: Path, arch: str, best: dict[str, Tile]) -> None:
    table = json.loads(file.read_text()) if file.is_file() else {}
    table[arch] = {kernel: list(tile) for kernel, tile in best.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(table, indent=2) + "\n")
    os.replace(partial, file)
    tiles.forget_file()
