"""topk_consistency_loss: hard Top-K, soft Top-K, loss and gradient in one launch, two for several pools; four where one
is longer than a program holds."""

import torch
from torch import Tensor

from vs_kernels.kernels.choose import run_topk


def topk_consistency_loss(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    num_pools = cu_lengths.shape[0] - 1
    grad_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    pivots, shifts = (scores.new_empty(num_pools) for _ in range(2))
    loss = scores.new_empty(())
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, pivots=pivots, shifts=shifts, loss=loss,
        grad_scores=grad_scores, temperature=temperature,
    )  # fmt: skip
    return loss, grad_scores
