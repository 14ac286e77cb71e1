"""straight_through_gather: two launches forward, two backward."""

import torch
from torch import Tensor

from vs_kernels.kernels.choose import run_topk
from vs_kernels.kernels.gather_tokens import gather_rows, scatter_rows
from vs_kernels.kernels.straight_through import straight_through_backward


def straight_through_gather(
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    selection_scores: Tensor | None,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    total_kept: int,
    max_length: int,
    temperature: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    indices = scores.new_empty(total_kept, dtype=torch.int64)
    pivots, shifts = (scores.new_empty(cu_lengths.shape[0] - 1) for _ in range(2))
    ranking = None if selection_scores is None else selection_scores.contiguous()
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, ranking=ranking, indices=indices, pivots=pivots,
        shifts=shifts, temperature=temperature,
    )  # fmt: skip
    return gather_rows(tokens, indices, scale), indices, pivots, shifts


def straight_through_gather_backward(
    grad_kept: Tensor,  # [K, D]
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    indices: Tensor,  # int64 [K]
    pivots: Tensor,  # float32 [S]
    shifts: Tensor,  # float32 [S]
    cu_lengths: Tensor,  # int64 [S + 1]
    temperature: float,
    scale: float,
    output_mask: list[bool],  # tokens, scores
) -> tuple[Tensor, Tensor]:

    def write_rows(given: Tensor | None, grad_tokens: Tensor | None, credit: Tensor | None) -> None:
        scatter_rows(grad_kept, indices, given, grad_tokens, credit, tokens.shape[0], scale)

    return straight_through_backward(write_rows, tokens, scores, pivots, shifts, cu_lengths, temperature, output_mask)
