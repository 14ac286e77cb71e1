"""importance_scores: how much every visual token matters, by a learned bilinear form with the pool's mean."""

import math

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_scorer_weights, packed_tokens
from vs_kernels.ops.sizes import plan_of
from vs_kernels.plan import SelectionPlan


def importance_scores(
    tokens: Tensor,  # [T, D] or [B, N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    plan: SelectionPlan | None = None,
) -> Tensor:  # [T] or [B, N]
    """Importance of every token among the tokens of its pool (VisionSelector, arXiv 2510.16598).

    ``s_i = mean_j (q_i . k_j) / sqrt(h)`` over the pool, with ``q = Wq x + bq`` and ``k = Wk x + bk``. The mean
    moves inside the product, exactly, so that neither an N x N nor an [N, h] matrix exists: two reads of the
    tokens, one of each weight.

    Args:
        tokens: packed [T, D] or dense [B, N, D]; float32, bfloat16 or float16; contiguous rows, any row stride.
        q_weight, k_weight: [h, D]; float32, bfloat16 or float16, also another dtype than the tokens.
        q_bias, k_bias: [h]. The scores of a pool share the term of ``q_bias``, so a Top-K gives it no gradient.
        plan: pools of the tokens; without it all of [T, D] is one pool and every row of [B, N, D] is one.

    Returns:
        float32 scores, [T] or [B, N], accumulated in float32 whatever the dtypes. Differentiable in all tensors.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    rows = packed_tokens(tokens, plan)
    check_scorer_weights(tokens, q_weight, q_bias, k_weight, k_bias)
    if plan is not None:
        cu_lengths = plan.cu_lengths(tokens.device)
    else:
        num_pools, length = (1, tokens.shape[0]) if tokens.dim() == 2 else (tokens.shape[0], tokens.shape[1])
        cu_lengths = torch.arange(num_pools + 1, device=tokens.device) * length
    inputs = rows, q_weight, q_bias, k_weight, k_bias
    score = ImportanceScoresFunction.apply if wants_autograd(*inputs) else _op
    scores = score(*inputs, cu_lengths)[0]
    return scores if tokens.dim() == 2 else scores.view(tokens.shape[:-1])


# Of the sum of absolute values: a few units in the last place of float32.
SUM_ROUNDING = 2**-22


class ImportanceScoresFunction(torch.autograd.Function):
    """(tokens [T, D], q_weight, q_bias, k_weight, k_bias, cu_lengths [S + 1]) -> scores [T], and the backward's
    mean tokens [S, D], mean keys [S, h] and directions [S, D]."""

    @staticmethod
    def forward(ctx, tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths):
        output = _op(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths)
        _, mean_tokens, mean_keys, directions = output
        ctx.mark_non_differentiable(mean_tokens, mean_keys, directions)
        ctx.save_for_backward(tokens, q_weight, q_bias, k_weight, mean_tokens, mean_keys, directions, cu_lengths)
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_scores, *_):
        wanted = list(ctx.needs_input_grad[:5])
        grads = _backward_op(grad_scores, *ctx.saved_tensors, wanted)
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None


def _kernel(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths):
    return reference.importance_scores_collapsed(tokens, q_weight, q_bias, k_weight, k_bias, plan_of(cu_lengths))


def _fake(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths):
    num_pools = cu_lengths.shape[0] - 1
    return (
        tokens.new_empty(tokens.shape[0], dtype=torch.float32),
        tokens.new_empty(num_pools, tokens.shape[1], dtype=torch.float32),
        tokens.new_empty(num_pools, q_weight.shape[0], dtype=torch.float32),
        tokens.new_empty(num_pools, tokens.shape[1], dtype=torch.float32),
    )


def _backward_kernel(
    grad_scores: Tensor,  # [T]
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    mean_tokens: Tensor,  # [S, D]
    mean_keys: Tensor,  # [S, h]
    directions: Tensor,  # [S, D]
    cu_lengths: Tensor,  # [S + 1]
    output_mask: list[bool],  # tokens, q_weight, q_bias, k_weight, k_bias
) -> tuple[Tensor, ...]:
    """With g the incoming gradient, y = sum g_i x_i and G = sum g_i of a pool:

    dWq = k y^T / sqrt(h), dbq = G k / sqrt(h), dk = (Wq y + G bq) / sqrt(h),
    dWk = dk mean(x)^T, dbk = dk, dx_i = g_i u / sqrt(h) + Wk^T dk / N.
    """
    plan = plan_of(cu_lengths)
    wants_tokens, wants_q_weight, wants_q_bias, wants_k_weight, wants_k_bias = output_mask
    wants_keys = wants_tokens or wants_k_weight or wants_k_bias
    likes = (tokens, q_weight, q_bias, k_weight, q_bias)
    grads = [
        torch.zeros(like.shape if wanted else 0, device=like.device)
        for like, wanted in zip(likes, output_mask, strict=True)
    ]
    grad = grad_scores / math.sqrt(q_weight.shape[0])
    for pool, (rows, _) in enumerate(reference.pools(plan)):
        x, g, key = tokens[rows], grad[rows], mean_keys[pool]
        total = sum_beyond_rounding(g)
        if wants_q_bias:
            grads[2] += total * key
        if not (wants_q_weight or wants_keys):
            continue
        weighted = reference.weighted_sum(g, x)
        if wants_q_weight:
            grads[1].addr_(key, weighted)
        if wants_keys:
            grad_key = reference.dots(q_weight, weighted) + total * q_bias.float()
        if wants_k_weight:
            grads[3].addr_(grad_key, mean_tokens[pool])
        if wants_k_bias:
            grads[4] += grad_key
        if wants_tokens:
            shared = reference.weighted_sum(grad_key, k_weight) / max(x.shape[0], 1)
            grads[0][rows] = g[:, None] * directions[pool] + shared
    return tuple(grad.to(like.dtype) for grad, like in zip(grads, likes, strict=True))


def sum_beyond_rounding(grad: Tensor) -> Tensor:
    """The sum, or zero where it is within the rounding of its float32 terms.

    A Top-K passes back gradients that sum to zero; what is left of the sum is noise, and would be the whole gradient
    of the query bias, which a Top-K cannot move.
    """
    total, size = grad.double().sum(), grad.double().abs().sum()
    return torch.where(total.abs() <= SUM_ROUNDING * size, 0.0, total).float()


def _backward_fake(
    grad_scores, tokens, q_weight, q_bias, k_weight, mean_tokens, mean_keys, directions, cu_lengths, output_mask
):
    likes = (tokens, q_weight, q_bias, k_weight, q_bias)
    return tuple(
        like.new_empty(like.shape) if wanted else tokens.new_empty(0)
        for like, wanted in zip(likes, output_mask, strict=True)
    )


_op = define(
    "importance_scores(Tensor tokens, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
    "Tensor cu_lengths) -> (Tensor scores, Tensor mean_tokens, Tensor mean_keys, Tensor directions)",
    _kernel,
    _fake,
)
_backward_op = define(
    "importance_scores_backward(Tensor grad_scores, Tensor tokens, Tensor q_weight, Tensor q_bias, Tensor k_weight, "
    "Tensor mean_tokens, Tensor mean_keys, Tensor directions, Tensor cu_lengths, bool[] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
