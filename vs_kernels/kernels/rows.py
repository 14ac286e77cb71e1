"""Kernels that write rows of tokens: each once, and none waits for a size from the device."""

import triton
import triton.language as tl

PROBES = tl.constexpr(128)


@triton.jit
def lower_bound(values, count, target):
    """How many of the ascending int64 values are below the target: a search with 128 loads at a time."""
    low = tl.full([], 0, tl.int64)
    size = tl.full([], 0, tl.int64) + count
    while size > 0:
        step = (size + PROBES - 1) // PROBES
        probes = (tl.arange(0, PROBES) + 1) * step - 1
        probed = tl.load(values + low + probes, mask=probes < size, other=9223372036854775807)
        pieces = tl.sum((probed < target).to(tl.int64), axis=0)
        low += pieces * step
        size = tl.minimum(step - 1, size - pieces * step)
    return low


@triton.jit(do_not_specialize=["total", "kept", "factor"])
def gather_rows_kernel(
    tokens,  # [T, D]
    indices,  # int64 [K]
    out,  # [K, D]
    positions,  # int64 [R, T], to gather with the rows; None: not
    kept_positions,  # int64 [R, K]
    flags,  # bool [T], to gather with the rows; None: not
    kept_flags,  # bool [K]
    stride,
    total,
    kept,
    factor,
    POSITIONS: tl.constexpr,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    slots = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = slots < kept
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = here[:, None] & (columns < WIDTH)[None, :]
    rows = tl.load(indices + slots, mask=here, other=0)
    x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask)
    if SCALED:
        x = (x.to(tl.float32) * factor).to(x.dtype)
    tl.store(out + slots[:, None] * WIDTH + columns[None, :], x, mask=mask)
    if positions is not None:
        if tl.program_id(1) == 0:
            for line in range(0, POSITIONS):
                position = tl.load(positions + line * total.to(tl.int64) + rows, mask=here)
                tl.store(kept_positions + line * kept.to(tl.int64) + slots, position, mask=here)
    if flags is not None:
        if tl.program_id(1) == 0:
            tl.store(kept_flags + slots, tl.load(flags + rows, mask=here), mask=here)


@triton.jit(do_not_specialize=["total", "kept", "factor"])
def scatter_rows_kernel(
    grads,  # [K, D]
    indices,  # int64 [K], strictly ascending
    tokens,  # [T, D]; None without credit
    grad_tokens,  # [T, D]: factor times the gradient of a kept row, or zero; None: not wanted
    credit,  # float32 [T]: <grad, token> of a kept row, or zero; None: not wanted
    grad_stride,
    stride,
    total,
    kept,
    factor,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    rows = first + tl.arange(0, BLOCK_ROWS)
    here = rows < total
    # Of these rows at most so many are kept, and their slots follow each other.
    low = lower_bound(indices, kept, first)
    window = low + tl.arange(0, BLOCK_ROWS)
    index = tl.load(indices + window, mask=window < kept, other=9223372036854775807)
    is_kept = tl.sum((index[None, :] == rows[:, None]).to(tl.int32), axis=1) > 0
    slots = low + tl.sum((index[None, :] < rows[:, None]).to(tl.int64), axis=1)
    products = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, WIDTH, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < WIDTH
        mask = is_kept[:, None] & inside[None, :]
        grad = tl.load(grads + slots[:, None] * grad_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if credit is not None:
            x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
            products += grad * x.to(tl.float32)
        if grad_tokens is not None:
            out = (grad * factor).to(grad_tokens.dtype.element_ty)
            tl.store(grad_tokens + rows[:, None] * WIDTH + columns[None, :], out, mask=here[:, None] & inside[None, :])
    if credit is not None:
        tl.store(credit + rows, tl.sum(products, axis=1), mask=here)


@triton.jit(do_not_specialize=["total", "factor"])
def mask_rows_kernel(
    values,  # [T, D]: tokens, or their gradient
    kept,  # bool [T]
    tokens,  # [T, D]; None without credit
    out,  # [T, D]: a row of the values, times the factor unless it is kept; None: not wanted
    credit,  # float32 [T]: <value, token> of every row; None: not wanted
    value_stride,
    stride,
    total,
    factor,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = rows < total
    is_kept = tl.load(kept + rows, mask=here, other=0) != 0
    products = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, WIDTH, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        mask = here[:, None] & (columns < WIDTH)[None, :]
        value = tl.load(values + rows[:, None] * value_stride + columns[None, :], mask=mask, other=0.0)
        if credit is not None:
            x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
            products += value.to(tl.float32) * x.to(tl.float32)
        if out is not None:
            damped = (value.to(tl.float32) * factor).to(value.dtype)
            damped = tl.where(is_kept[:, None], value, damped)
            tl.store(out + rows[:, None] * WIDTH + columns[None, :], damped, mask=mask)
    if credit is not None:
        tl.store(credit + rows, tl.sum(products, axis=1), mask=here)
