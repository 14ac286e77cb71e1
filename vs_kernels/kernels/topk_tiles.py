"""A pool in the registers of one program: a tuple of tiles [WARPS, LANES] of keys, one key a thread in each.

A warp owns rows that follow each other, LANES of them in each tile. So tiles are summed and scanned without a barrier,
and only what is left of them crosses the warps. Where much is computed of every key, a loop takes GROUP tiles at a time
off the front of the tuple and puts them back behind: unrolled, what it computes of all tiles would be live at once.
"""

import triton
import triton.language as tl

from vs_kernels.kernels.scores import score_key

GROUP = tl.constexpr(4)


@triton.jit
def first_rows(TILES: tl.constexpr, WARPS: tl.constexpr, LANES: tl.constexpr):
    """Rows of the first tile, counted from the pool's first one; those of each other tile are LANES further on."""
    return (tl.arange(0, WARPS) * (TILES * LANES))[:, None] + tl.arange(0, LANES)[None, :]


@triton.jit
def load_keys(scores, rows, n, TILES: tl.constexpr):
    """The keys of a pool of ``n`` scores.

    What lies beyond the pool ranks last, behind its own NaN: it is never among the k first.
    """
    keys = ()
    for tile in tl.static_range(TILES):
        ahead = tile * rows.shape[1]
        keys += (score_key(tl.load((scores + rows) + ahead, mask=rows < n - ahead, other=float("nan"))),)  # type: ignore[assignment]
    return keys


@triton.jit
def sum_of_tile(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)
