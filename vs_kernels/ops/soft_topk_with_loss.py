"""soft_topk_with_loss: the differentiable Top-K and its consistency loss from one solution."""

import torch
from torch import Tensor

from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_temperature, packed_scores
from vs_kernels.plan import SelectionPlan


def soft_topk_with_loss(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`soft_topk` and :func:`topk_consistency_loss` of the same scores: what one step of soft training needs.

    The hard Top-K and the threshold are found once, on a GPU in one launch, in four beyond 16,384 tokens, and the
    backward is one pass over the scores; the two functions called one after the other do all of that twice.

    Args:
        scores: float32, packed [T] or dense [B, N].
        plan: pools and how many tokens each keeps.
        temperature: from 1e-37 to 1e37.

    Returns:
        probabilities, float32, the shape of ``scores``; thresholds, float32 [S]; the loss, float32 scalar.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
    """
    packed = packed_scores(scores, plan)
    check_temperature(temperature)
    cu_lengths, cu_ks = plan.offsets(scores.device)
    soft = SoftTopKWithLossFunction.apply if wants_autograd(packed) else _op
    probs, thresholds, loss, *_ = soft(packed, cu_lengths, cu_ks, plan.max_length, temperature)
    return probs if scores.dim() == 1 else probs.view(scores.shape), thresholds, loss


class SoftTopKWithLossFunction(torch.autograd.Function):
    """(scores [T], cu_lengths [S + 1], cu_ks [S + 1], max_length, temperature) -> probabilities [T], thresholds [S],
    loss []."""

    @staticmethod
    def forward(ctx, scores, cu_lengths, cu_ks, max_length, temperature):
        probs, thresholds, loss, *parts = _op(scores, cu_lengths, cu_ks, max_length, temperature)
        ctx.save_for_backward(scores, *parts, cu_lengths)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return probs, thresholds, loss

    @staticmethod
    @first_order
    def backward(ctx, grad_probs, grad_thresholds, grad_loss):
        saved = ctx.saved_tensors
        grad_probs = torch.zeros_like(saved[0]) if grad_probs is None else grad_probs
        grad_loss = saved[0].new_zeros(()) if grad_loss is None else grad_loss
        grad = _backward_op(grad_probs, grad_thresholds, grad_loss, *saved, ctx.temperature)
        return grad, None, None, None, None


def _kernel(scores, cu_lengths, cu_ks, max_length, temperature):
    arguments = scores, cu_lengths, cu_ks, max_length, temperature
    probs, thresholds, pivots, shifts = torch.ops.vs_kernels.soft_topk(*arguments)
    loss, loss_gradient = torch.ops.vs_kernels.topk_consistency_loss(*arguments)
    return probs, thresholds, loss, pivots, shifts, loss_gradient


def _fake(scores, cu_lengths, cu_ks, max_length, temperature):
    num_pools = cu_lengths.shape[0] - 1
    thresholds, pivots, shifts = (scores.new_empty(num_pools) for _ in range(3))
    return torch.empty_like(scores), thresholds, scores.new_empty(()), pivots, shifts, torch.empty_like(scores)


def _backward_kernel(
    grad_probs: Tensor,  # [T]
    grad_thresholds: Tensor | None,  # [S]
    grad_loss: Tensor,  # []
    scores: Tensor,  # [T]
    pivots: Tensor,  # [S]
    shifts: Tensor,  # [S]
    loss_gradient: Tensor,  # [T]
    cu_lengths: Tensor,  # [S + 1]
    temperature: float,
) -> Tensor:
    arguments = grad_probs, grad_thresholds, scores, pivots, shifts, cu_lengths, temperature
    return torch.ops.vs_kernels.soft_topk_backward(*arguments) + grad_loss * loss_gradient


def _backward_fake(
    grad_probs, grad_thresholds, grad_loss, scores, pivots, shifts, loss_gradient, cu_lengths, temperature
):
    return torch.empty_like(scores)


_op = define(
    "soft_topk_with_loss(Tensor scores, Tensor cu_lengths, Tensor cu_ks, SymInt max_length, float temperature) "
    "-> (Tensor probs, Tensor thresholds, Tensor loss, Tensor pivots, Tensor shifts, Tensor loss_gradient)",
    _kernel,
    _fake,
)
_backward_op = define(
    "soft_topk_with_loss_backward(Tensor grad_probs, Tensor? grad_thresholds, Tensor grad_loss, Tensor scores, "
    "Tensor pivots, Tensor shifts, Tensor loss_gradient, Tensor cu_lengths, float temperature) -> Tensor",
    _backward_kernel,
    _backward_fake,
)
