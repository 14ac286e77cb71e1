"""Digits of keys counted tile by tile, and the digit of a rank found in the counts of all tiles of a pool.

A tile writes how many of its keys reach each digit, rather than how many have it: these numbers add up over tiles as
well, and two rounds of loads find the digit of a rank in them, one over every 64th digit and one over the digits
between two of those. No program reads all counts of all tiles.
"""

import triton
import triton.language as tl

GROUPS = tl.constexpr(64)
# Tiles whose counts are added up at a time.
TILES_AT_ONCE = tl.constexpr(64)
ROWS_AT_ONCE = tl.constexpr(512)


@triton.jit
def unsigned(key):
    """The key in the same order as an integer >= 0."""
    return key.to(tl.int64) + 2147483648


@triton.jit
def find_digit(counts, bins, rank):
    """The digit of the rank-th largest key from the counts of all digits, and its rank among those with that digit."""
    at_least = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((at_least >= rank).to(tl.int32), axis=0) - 1
    return digit, rank - tl.sum(tl.where(bins > digit, counts, 0), axis=0)


@triton.jit
def write_digits(digits, inside, reached, groups, tile, BINS: tl.constexpr):
    """How many of a tile's keys reach each digit: to ``reached`` [tiles, BINS], every BINS / 64th to ``groups``.

    Returns how many have it.
    """
    WIDTH: tl.constexpr = BINS // GROUPS
    bins = tl.arange(0, BINS)
    equal = tl.histogram(digits, BINS, mask=inside)
    count = tl.cumsum(equal, axis=0, reverse=True)
    tile = tile.to(tl.int64)
    tl.store(reached + tile * BINS + bins, count)
    tl.store(groups + tile * GROUPS + bins // WIDTH, count, mask=bins % WIDTH == 0)
    return equal


@triton.jit
def add_tiles(table, first, tiles, stride, columns, COLUMNS: tl.constexpr):
    """Sums over ``tiles`` rows of a table from the ``first`` on, of the given columns."""
    total = tl.zeros([TILES_AT_ONCE, COLUMNS], table.dtype.element_ty)
    for start in range(0, tiles, TILES_AT_ONCE):
        rows = start + tl.arange(0, TILES_AT_ONCE)
        cells = (first + rows)[:, None] * stride + columns[None, :]
        total += tl.load(table + cells, mask=(rows < tiles)[:, None], other=0)
    return tl.sum(total, axis=0)


@triton.jit
def find_digit_of_tiles(reached, groups, first, tiles, rank, BINS: tl.constexpr):
    """The largest digit that ``rank`` keys of a pool reach; how many have a larger one; how many reach it."""
    WIDTH: tl.constexpr = BINS // GROUPS
    wide = tl.arange(0, GROUPS)
    count = add_tiles(groups, first, tiles, GROUPS, wide, GROUPS)
    group = tl.sum((count >= rank).to(tl.int32), axis=0) - 1
    above_group = tl.sum(tl.where(wide == group + 1, count, 0), axis=0)
    narrow = tl.arange(0, WIDTH)
    count = add_tiles(reached, first, tiles, BINS, group * WIDTH + narrow, WIDTH)
    digit = tl.sum((count >= rank).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where(narrow == digit + 1, count, 0), axis=0)
    above = tl.where(digit == WIDTH - 1, above_group, above)
    return group * WIDTH + digit, above, tl.sum(tl.where(narrow == digit, count, 0), axis=0)


@triton.jit
def add_column(table, first, tiles, stride, column):
    """The sum over ``tiles`` rows of a table from the ``first`` on, of one column."""
    total = tl.zeros([ROWS_AT_ONCE], table.dtype.element_ty)
    for start in range(0, tiles, ROWS_AT_ONCE):
        rows = start + tl.arange(0, ROWS_AT_ONCE)
        total += tl.load(table + (first + rows) * stride + column, mask=rows < tiles, other=0)
    return tl.sum(total, axis=0)
