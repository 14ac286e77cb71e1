"""soft_topk: the differentiable Top-K."""

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_temperature, packed_scores
from vs_kernels.ops.sizes import plan_of
from vs_kernels.plan import SelectionPlan


def soft_topk(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Probabilities of being kept that sum to k in every pool (VisionSelector, arXiv 2510.16598).

    ``p_i = sigmoid((s_i + t) / temperature)``, with the threshold ``t`` solved to float32 accuracy. The gradient is
    that of the solution: ``ds = (v * g - v * sum(v g) / sum(v)) / temperature`` with ``v = p (1 - p)``.

    Args:
        scores: float32, packed [T] or dense [B, N]. NaN and -Inf count as the smallest float32, +Inf as the largest.
        plan: pools and how many tokens each keeps.
        temperature: from 1e-37 to 1e37; the smaller it is, the nearer the probabilities are to the hard mask.

    Returns:
        probabilities, float32, the shape of ``scores``, and thresholds ``t``, float32 [S]. Both differentiable.
        A pool with k = 0 has p = 0, t = -inf; one with k = N has p = 1, t = +inf; these, and pools where every
        probability is saturated, have zero gradients.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
    """
    packed = packed_scores(scores, plan)
    check_temperature(temperature)
    cu_lengths, cu_ks = plan.offsets(scores.device)
    soft = SoftTopKFunction.apply if wants_autograd(packed) else _op
    probs, thresholds, _, _ = soft(packed, cu_lengths, cu_ks, plan.max_length, temperature)
    return probs if scores.dim() == 1 else probs.view(scores.shape), thresholds


class SoftTopKFunction(torch.autograd.Function):
    """(scores [T], cu_lengths [S + 1], cu_ks [S + 1], max_length, temperature) -> probabilities [T], thresholds [S],
    and the backward's pivots [S] and shifts [S].

    The logit of token i is ``(s_i - pivot) / temperature + shift``: the pivot is the pool's k-th largest score. A
    float32 threshold alone could not give it back, its spacing is too coarse at a low temperature.
    """

    @staticmethod
    def forward(ctx, scores, cu_lengths, cu_ks, max_length, temperature):
        output = _op(scores, cu_lengths, cu_ks, max_length, temperature)
        _, _, pivots, shifts = output
        ctx.mark_non_differentiable(pivots, shifts)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, pivots, shifts, cu_lengths)
        ctx.temperature = temperature
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_probs, grad_thresholds, *_):
        saved = ctx.saved_tensors
        grad_probs = torch.zeros_like(saved[0]) if grad_probs is None else grad_probs
        grad = _backward_op(grad_probs, grad_thresholds, *saved, ctx.temperature)
        return grad, None, None, None, None


def solve(scores: Tensor, plan: SelectionPlan, temperature: float) -> tuple[Tensor, Tensor]:
    """Pivots [S] and shifts [S], float32, in plain PyTorch."""
    roots = [reference.solve_shift(scores[rows], k, temperature) for rows, k in reference.pools(plan)]
    pivots, shifts = scores.new_tensor(roots, dtype=torch.float32).view(-1, 2).unbind(dim=1)
    return pivots.contiguous(), shifts.contiguous()


def soft_logits(scores: Tensor, pivot: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """Float32 logits of one pool from the saved root."""
    if not torch.isfinite(shift):
        return shift.expand(scores.shape)
    largest = torch.finfo(torch.float32).max
    return (scores.nan_to_num(nan=-largest) - pivot) / temperature + shift


def soft_jacobian(
    grad_probs: Tensor, scores: Tensor, logits: Tensor, temperature: float, grad_threshold: Tensor | float = 0.0
) -> Tensor:
    """Gradient of one pool's scores from those of its probabilities and threshold; zero where a score is not finite."""
    slopes = torch.sigmoid(-logits.abs()) * torch.sigmoid(logits.abs())
    total = slopes.sum()
    if total == 0:
        return torch.zeros_like(grad_probs)
    # twice, so that the gradients of a pool add up to zero also where the incoming ones vary little
    centred = grad_probs - (slopes * grad_probs).sum() / total
    centred -= (slopes * centred).sum() / total
    return torch.where(scores.isfinite(), slopes * (centred / temperature - grad_threshold / total), 0.0)


def _kernel(scores, cu_lengths, cu_ks, max_length, temperature):
    plan = plan_of(cu_lengths, cu_ks)
    pivots, shifts = solve(scores, plan, temperature)
    probs = torch.empty_like(scores)
    for pool, (rows, _) in enumerate(reference.pools(plan)):
        probs[rows] = torch.sigmoid(soft_logits(scores[rows], pivots[pool], shifts[pool], temperature))
    return probs, shifts * temperature - pivots, pivots, shifts


def _fake(scores, cu_lengths, cu_ks, max_length, temperature):
    num_pools = cu_lengths.shape[0] - 1
    return torch.empty_like(scores), *(scores.new_empty(num_pools) for _ in range(3))


def _backward_kernel(grad_probs, grad_thresholds, scores, pivots, shifts, cu_lengths, temperature):
    grad = torch.empty_like(scores)
    for pool, (rows, _) in enumerate(reference.pools(plan_of(cu_lengths))):
        logits = soft_logits(scores[rows], pivots[pool], shifts[pool], temperature)
        grad_threshold = 0.0 if grad_thresholds is None else grad_thresholds[pool]
        grad[rows] = soft_jacobian(grad_probs[rows], scores[rows], logits, temperature, grad_threshold)
    return grad


def _backward_fake(grad_probs, grad_thresholds, scores, pivots, shifts, cu_lengths, temperature):
    return torch.empty_like(scores)


_op = define(
    "soft_topk(Tensor scores, Tensor cu_lengths, Tensor cu_ks, SymInt max_length, float temperature) "
    "-> (Tensor probs, Tensor thresholds, Tensor pivots, Tensor shifts)",
    _kernel,
    _fake,
)
_backward_op = define(
    "soft_topk_backward(Tensor grad_probs, Tensor? grad_thresholds, Tensor scores, Tensor pivots, Tensor shifts, "
    "Tensor cu_lengths, float temperature) -> Tensor",
    _backward_kernel,
    _backward_fake,
)
