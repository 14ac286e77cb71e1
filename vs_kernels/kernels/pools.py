"""Pools on the device: which rows a program works on.

Packed rows are cut into tiles that never cross a pool. How many tiles a pool has depends on its length, which only the
device knows without being asked; so every pool owns enough slots for any length at its place: slots
``cu[s] // rows + s`` up to ``cu[s + 1] // rows + s + 1``, ``T // rows + S`` in all. A slot too many has no rows.
"""

import triton
import triton.language as tl


def num_tiles(total_rows: int, num_pools: int, tile_rows: int) -> int:
    """Slots for tiles of ``tile_rows`` rows."""
    return total_rows // tile_rows + num_pools


@triton.jit
def first_tile(begin, pool, tile_rows):
    """First slot of a pool that begins at a row; also for vectors of pools."""
    return begin // tile_rows + pool


@triton.jit
def find_tile(cu_lengths, num_pools, tile, tile_rows):
    """Pool, first row and end row of a tile, rows as int64; there are none where the first is not below the end."""
    low = tile * 0
    high = low + num_pools - 1
    while low < high:
        middle = (low + high + 1) // 2
        reached = first_tile(tl.load(cu_lengths + middle), middle, tile_rows) <= tile
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    begin = tl.load(cu_lengths + low)
    first = begin + (tile - first_tile(begin, low, tile_rows)) * tile_rows
    return low, first, tl.minimum(first + tile_rows, tl.load(cu_lengths + low + 1))
