"""soft_topk: one launch forward, one backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.choose import run_topk
from vs_kernels.kernels.launch import launch
from vs_kernels.kernels.scores import finite_score, is_finite, score_key, sigmoid

BLOCK = 4096


@triton.jit
def _slopes(scores, start, n, pivot, shift, inverse_temperature, BLOCK: tl.constexpr):
    """p (1 - p) of one block, and whether each score is finite."""
    rows = start + tl.arange(0, BLOCK)
    inside = rows < n
    key = score_key(tl.load(scores + rows, mask=inside, other=0.0))
    _, small, _ = sigmoid((finite_score(key) - pivot) * inverse_temperature + shift)
    return tl.where(inside, small * (1.0 - small), 0.0), is_finite(key)


@triton.jit
def _soft_topk_bwd_kernel(
    grad_probs,  # float32 [T]
    grad_thresholds,  # float32 [S]; None: zero
    grad_loss,  # float32 [], with loss_gradient; None: zero
    loss_gradient,  # float32 [T], of the scores
    scores,  # float32 [T]
    pivots,  # float32 [S]
    shifts,  # float32 [S]
    cu_lengths,  # int64 [S + 1]
    grad_scores,  # float32 [T]
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    pool = tl.program_id(0)
    begin = tl.load(cu_lengths + pool)
    n = (tl.load(cu_lengths + pool + 1) - begin).to(tl.int32)
    pivot, shift = tl.load(pivots + pool), tl.load(shifts + pool)
    scores += begin
    grad_probs += begin
    total = tl.full([], 0.0, tl.float64)
    weighted = tl.full([], 0.0, tl.float64)
    # An infinite shift means k = 0 or n: no row can move.
    moving = tl.where(tl.abs(shift) < float("inf"), n, 0)
    for start in range(0, moving, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        slope, _ = _slopes(scores, start, n, pivot, shift, inverse_temperature, BLOCK)
        total += tl.sum(slope, axis=0).to(tl.float64)
        grad = tl.load(grad_probs + rows, mask=rows < n, other=0.0)
        weighted += tl.sum(slope * grad, axis=0).to(tl.float64)
    divisor = tl.where(total > 0.0, total, 1.0)
    mean = (weighted / divisor).to(tl.float32)
    # The gradients of a pool add up to zero. Around the mean the terms are as small as the result, so that this holds
    # to the rounding of the result, also where the incoming ones vary little.
    weighted = tl.full([], 0.0, tl.float64)
    for start in range(0, moving, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        slope, _ = _slopes(scores, start, n, pivot, shift, inverse_temperature, BLOCK)
        grad = tl.load(grad_probs + rows, mask=rows < n, other=0.0)
        weighted += tl.sum(slope * (grad - mean), axis=0).to(tl.float64)
    rest = (weighted / divisor).to(tl.float32)
    of_threshold = 0.0
    if grad_thresholds is not None:
        of_threshold = tl.load(grad_thresholds + pool) / divisor.to(tl.float32)
    for start in range(0, n, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        slope, finite = _slopes(scores, start, n, pivot, shift, inverse_temperature, BLOCK)
        grad = tl.load(grad_probs + rows, mask=rows < n, other=0.0)
        # The slope comes first in each product: where it is 0, so is the result, however large the other factors are.
        grad = slope * inverse_temperature * (grad - mean - rest) - slope * of_threshold
        grad = tl.where((rows < moving) & finite, grad, 0.0)
        if grad_loss is not None:
            grad += tl.load(grad_loss) * tl.load(loss_gradient + begin + rows, mask=rows < n, other=0.0)
        tl.store(grad_scores + begin + rows, grad, mask=rows < n)


def soft_topk(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_pools = cu_lengths.shape[0] - 1
    probs = torch.empty_like(scores, memory_format=torch.contiguous_format)
    thresholds, pivots, shifts = (scores.new_empty(num_pools) for _ in range(3))
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, probs=probs, thresholds=thresholds, pivots=pivots,
        shifts=shifts, temperature=temperature,
    )  # fmt: skip
    return probs, thresholds, pivots, shifts


def soft_topk_backward(
    grad_probs: Tensor,  # float32 [T]
    grad_thresholds: Tensor | None,  # float32 [S]
    scores: Tensor,  # float32 [T]
    pivots: Tensor,  # float32 [S]
    shifts: Tensor,  # float32 [S]
    cu_lengths: Tensor,  # int64 [S + 1]
    temperature: float,
) -> Tensor:
    return soft_jacobian(grad_probs, scores, pivots, shifts, cu_lengths, temperature, grad_thresholds)


def soft_jacobian(
    grad_probs: Tensor, scores: Tensor, pivots: Tensor, shifts: Tensor, cu_lengths: Tensor, temperature: float,
    grad_thresholds: Tensor | None = None, grad_loss: Tensor | None = None, loss_gradient: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Gradient of the scores from those of the probabilities, the thresholds and the loss, in one launch."""
    scores = scores.contiguous()
    grad_scores = torch.empty_like(scores)
    if grad_thresholds is not None:
        grad_thresholds = grad_thresholds.contiguous()
    launch(
        _soft_topk_bwd_kernel, (cu_lengths.shape[0] - 1,), grad_probs.contiguous(), grad_thresholds, grad_loss,
        loss_gradient, scores, pivots, shifts, cu_lengths, grad_scores, 1.0 / temperature, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return grad_scores
