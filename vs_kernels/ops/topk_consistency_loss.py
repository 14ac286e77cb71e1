"""topk_consistency_loss: pulls the soft Top-K towards its own hard mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_temperature, packed_scores
from vs_kernels.ops.sizes import plan_of
from vs_kernels.ops.soft_topk import soft_logits, solve
from vs_kernels.plan import SelectionPlan


def topk_consistency_loss(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy of the soft Top-K towards the hard mask (VisionSelector, arXiv 2510.16598).

    ``mean_i(softplus(x_i) - m_i x_i)`` over all tokens of all pools, with ``x`` the logits of :func:`soft_topk` and
    ``m`` the mask of :func:`topk_mask`, which has no gradient. Pools with k = 0 or k = N add nothing.

    Args:
        scores: float32, packed [T] or dense [B, N].
        plan: pools and how many tokens each keeps.
        temperature: from 1e-37 to 1e37.

    Returns:
        float32 scalar, >= 0; zero without tokens. The forward makes the gradient as well, in the same pass.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
    """
    packed = packed_scores(scores, plan)
    check_temperature(temperature)
    cu_lengths, cu_ks = plan.offsets(scores.device)
    loss_of = TopKConsistencyLossFunction.apply if wants_autograd(packed) else _op
    return loss_of(packed, cu_lengths, cu_ks, plan.max_length, temperature)[0]


class TopKConsistencyLossFunction(torch.autograd.Function):
    """(scores [T], cu_lengths [S + 1], cu_ks [S + 1], max_length, temperature) -> loss [], and its gradient [T]."""

    @staticmethod
    def forward(ctx, scores, cu_lengths, cu_ks, max_length, temperature):
        output = _op(scores, cu_lengths, cu_ks, max_length, temperature)
        _, grad_scores = output
        ctx.mark_non_differentiable(grad_scores)
        ctx.save_for_backward(grad_scores)
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_loss, _):
        (grad_scores,) = ctx.saved_tensors
        return grad_loss * grad_scores, None, None, None, None


def _kernel(scores, cu_lengths, cu_ks, max_length, temperature):
    plan = plan_of(cu_lengths, cu_ks)
    pivots, shifts = solve(scores, plan, temperature)
    mask = reference.topk_mask(scores, plan)
    grad = torch.zeros_like(scores)
    total = scores.new_zeros((), dtype=torch.float64)
    for pool, (rows, k) in enumerate(reference.pools(plan)):
        if 0 < k < rows.stop - rows.start:
            logits = soft_logits(scores[rows], pivots[pool], shifts[pool], temperature)
            total += F.softplus(torch.where(mask[rows], -logits, logits)).sum(dtype=torch.float64)
            moved = _through_threshold(torch.sigmoid(logits) - mask[rows].float(), logits) / temperature
            grad[rows] = torch.where(scores[rows].isfinite(), moved, 0.0)
    return (total / max(plan.total_tokens, 1)).float(), grad / max(plan.total_tokens, 1)


def _through_threshold(grad_logits: Tensor, logits: Tensor) -> Tensor:
    """``g - v sum(g) / V``: the logits of a pool share the threshold, which moves against every score."""
    slopes = torch.sigmoid(-logits.abs()) * torch.sigmoid(logits.abs())
    total = slopes.sum()
    if total == 0:
        return torch.zeros_like(grad_logits)
    return grad_logits - slopes * (grad_logits.sum() / total)


def _fake(scores, cu_lengths, cu_ks, max_length, temperature):
    return scores.new_empty(()), torch.empty_like(scores)


_op = define(
    "topk_consistency_loss(Tensor scores, Tensor cu_lengths, Tensor cu_ks, SymInt max_length, float temperature) "
    "-> (Tensor loss, Tensor grad_scores)",
    _kernel,
    _fake,
)
