"""straight_through_mask: two launches forward, two backward."""

import torch
import triton
from torch import Tensor

from vs_kernels.kernels.choose import run_topk
from vs_kernels.kernels.launch import launch, row_major
from vs_kernels.kernels.rows import mask_rows_kernel
from vs_kernels.kernels.straight_through import straight_through_backward
from vs_kernels.kernels.tiles import tile_of


def straight_through_mask(
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    selection_scores: Tensor | None,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    temperature: float,
    dropped_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    pivots, shifts = (scores.new_empty(cu_lengths.shape[0] - 1) for _ in range(2))
    ranking = None if selection_scores is None else selection_scores.contiguous()
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, ranking=ranking, mask=mask, pivots=pivots, shifts=shifts,
        temperature=temperature,
    )  # fmt: skip
    out = tokens.new_empty(tokens.shape)
    _mask_rows(tokens, mask, None, out, None, dropped_scale)
    return out, mask, pivots, shifts


def straight_through_mask_backward(
    grad_out: Tensor,  # [T, D]
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    mask: Tensor,  # bool [T]
    pivots: Tensor,  # float32 [S]
    shifts: Tensor,  # float32 [S]
    cu_lengths: Tensor,  # int64 [S + 1]
    temperature: float,
    dropped_scale: float,
    output_mask: list[bool],  # tokens, scores
) -> tuple[Tensor, Tensor]:

    def write_rows(given: Tensor | None, grad_tokens: Tensor | None, credit: Tensor | None) -> None:
        _mask_rows(grad_out, mask, given, grad_tokens, credit, dropped_scale)

    return straight_through_backward(write_rows, tokens, scores, pivots, shifts, cu_lengths, temperature, output_mask)


def _mask_rows(
    values: Tensor, kept: Tensor, tokens: Tensor | None, out: Tensor | None, credit: Tensor | None, factor: float
) -> None:
    values, (total, width) = row_major(values), values.shape
    tokens = None if tokens is None else row_major(tokens)
    tile = tile_of("rows", width, values.device)
    launch(
        mask_rows_kernel, (triton.cdiv(total, tile.rows),), values, kept.contiguous(), tokens, out, credit,
        values.stride(0), 0 if tokens is None else tokens.stride(0), total, factor, WIDTH=width, BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip
