"""soft_topk_with_loss: hard Top-K, soft Top-K, loss and its gradient in one launch, two for several pools; four where
one is longer than a program holds."""

import torch
from torch import Tensor

from vs_kernels.kernels.choose import run_topk
from vs_kernels.kernels.soft_topk import soft_jacobian


def soft_topk_with_loss(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_pools = cu_lengths.shape[0] - 1
    probs, loss_gradient = (torch.empty_like(scores, memory_format=torch.contiguous_format) for _ in range(2))
    thresholds, pivots, shifts = (scores.new_empty(num_pools) for _ in range(3))
    loss = scores.new_empty(())
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, probs=probs, thresholds=thresholds, pivots=pivots,
        shifts=shifts, loss=loss, grad_scores=loss_gradient, temperature=temperature,
    )  # fmt: skip
    return probs, thresholds, loss, pivots, shifts, loss_gradient


def soft_topk_with_loss_backward(
    grad_probs: Tensor,  # float32 [T]
    grad_thresholds: Tensor | None,  # float32 [S]
    grad_loss: Tensor,  # float32 []
    scores: Tensor,  # float32 [T]
    pivots: Tensor,  # float32 [S]
    shifts: Tensor,  # float32 [S]
    loss_gradient: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    temperature: float,
) -> Tensor:
    return soft_jacobian(
        grad_probs, scores, pivots, shifts, cu_lengths, temperature, grad_thresholds, grad_loss,
        loss_gradient.contiguous(),
    )  # fmt: skip
