"""gather_tokens: one launch forward, one backward, which writes each row once."""

import triton
from torch import Tensor

from vs_kernels.kernels.launch import launch, row_major
from vs_kernels.kernels.rows import gather_rows_kernel, scatter_rows_kernel
from vs_kernels.kernels.tiles import tile_of


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    return gather_rows(tokens, indices.contiguous(), 1.0)


def gather_tokens_backward(grad_kept: Tensor, indices: Tensor, total_tokens: int) -> Tensor:
    grad_tokens = grad_kept.new_empty(total_tokens, grad_kept.shape[1])
    scatter_rows(grad_kept, indices, None, grad_tokens, None, total_tokens, 1.0)
    return grad_tokens


def gather_rows(
    tokens: Tensor,  # [T, D]
    indices: Tensor,  # int64 [K]
    factor: float,
    positions: tuple[Tensor | None, Tensor | None] = (None, None),  # int64 [R, T] and, to write, [R, K]
    flags: tuple[Tensor | None, Tensor | None] = (None, None),  # bool [T] and, to write, [K]
) -> Tensor:
    """[K, D]: factor times the rows; with them their positions and flags."""
    (width,), kept, tokens = tokens.shape[1:], indices.shape[0], row_major(tokens)
    out = tokens.new_empty(kept, width)
    axes = 0 if positions[0] is None else positions[0].numel() // max(1, tokens.shape[0])
    tile = tile_of("rows", width, tokens.device)
    launch(
        gather_rows_kernel, (triton.cdiv(kept, tile.rows), triton.cdiv(width, tile.columns)), tokens, indices, out,
        *positions, *flags, tokens.stride(0), tokens.shape[0], kept, factor,
        POSITIONS=axes, SCALED=factor != 1.0, WIDTH=width, BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip
    return out


def scatter_rows(
    grads: Tensor,  # [K, D]
    indices: Tensor,  # int64 [K]
    tokens: Tensor | None,  # [T, D], with credit
    grad_tokens: Tensor | None,  # [T, D], out
    credit: Tensor | None,  # float32 [T], out
    total: int,
    factor: float,
) -> None:
    """Gradients of the kept rows to their places, zero elsewhere; and the credit of every row."""
    grads, width = row_major(grads), grads.shape[1]
    tokens = None if tokens is None else row_major(tokens)
    tile = tile_of("rows", width, grads.device)
    launch(
        scatter_rows_kernel, (triton.cdiv(total, tile.rows),), grads, indices.contiguous(), tokens, grad_tokens, credit,
        grads.stride(0), 0 if tokens is None else tokens.stride(0), total, indices.shape[0], factor, WIDTH=width,
        BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip
