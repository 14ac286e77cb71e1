"""straight_through_gather: drop tokens in the forward, learn through the soft Top-K in the backward."""

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_scale, check_temperature, packed_straight_through
from vs_kernels.ops.sizes import plan_of
from vs_kernels.ops.soft_topk import soft_jacobian, soft_logits, solve
from vs_kernels.plan import SelectionPlan


def straight_through_gather(
    tokens: Tensor,  # [T, D] or [B, N, D]
    scores: Tensor,  # [T] or [B, N]
    plan: SelectionPlan,
    temperature: float = 1.0,
    *,
    scale: float = 1.0,
    selection_scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The rows that a hard Top-K keeps, with the gradient of a soft one.

    The model runs on K rows in training as in inference. A kept row has the credit ``a_i = <grad_out_i, x_i>``, a
    dropped one 0; the scores get ``J a``, with J the Jacobian of :func:`soft_topk`, the tokens ``scale * grad_out_i``.

    Args:
        tokens: packed [T, D] or dense [B, N, D]; float32, bfloat16 or float16; contiguous rows, any row stride.
        scores: float32, packed [T] or dense [B, N]; they carry the gradient.
        plan: pools and how many tokens each keeps.
        temperature: from 1e-37 to 1e37, of the soft Top-K.
        scale: >= 0, multiplies the kept rows (and the tokens' gradient, not the credit).
        selection_scores: rank the tokens by these instead, for example scores with exploration noise; no gradient.

    Returns:
        kept rows [K, D] in the dtype of the tokens, and their indices, int64 [K], ascending.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    rows, packed, ranking = packed_straight_through(tokens, scores, selection_scores, plan)
    check_temperature(temperature)
    check_scale(scale, "scale")
    cu_lengths, cu_ks = plan.offsets(tokens.device)
    gather = StraightThroughGatherFunction.apply if wants_autograd(rows, packed) else _op
    kept, indices, _, _ = gather(
        rows, packed, ranking, cu_lengths, cu_ks, plan.total_kept, plan.max_length, temperature, scale
    )
    return kept, indices


class StraightThroughGatherFunction(torch.autograd.Function):
    """(tokens [T, D], scores [T], selection_scores [T] or None, cu_lengths [S + 1], cu_ks [S + 1], total_kept,
    max_length, temperature, scale) -> kept [K, D], indices [K], and the backward's pivots [S] and shifts [S]."""

    @staticmethod
    def forward(ctx, tokens, scores, selection_scores, cu_lengths, cu_ks, total_kept, max_length, temperature, scale):
        output = _op(tokens, scores, selection_scores, cu_lengths, cu_ks, total_kept, max_length, temperature, scale)
        _, indices, pivots, shifts = output
        ctx.mark_non_differentiable(indices, pivots, shifts)
        ctx.save_for_backward(tokens, scores, indices, pivots, shifts, cu_lengths)
        ctx.temperature, ctx.scale = temperature, scale
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_kept, *_):
        wanted = list(ctx.needs_input_grad[:2])
        grads = _backward_op(grad_kept, *ctx.saved_tensors, ctx.temperature, ctx.scale, wanted)
        grad_tokens, grad_scores = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
        return grad_tokens, grad_scores, None, None, None, None, None, None, None


def _kernel(tokens, scores, selection_scores, cu_lengths, cu_ks, total_kept, max_length, temperature, scale):
    plan = plan_of(cu_lengths, cu_ks)
    indices = reference.topk_indices(scores if selection_scores is None else selection_scores, plan)
    pivots, shifts = solve(scores, plan, temperature)
    return tokens.index_select(0, indices) * scale, indices, pivots, shifts


def _fake(tokens, scores, selection_scores, cu_lengths, cu_ks, total_kept, max_length, temperature, scale):
    num_pools = cu_lengths.shape[0] - 1
    return (
        tokens.new_empty(total_kept, tokens.shape[1]),
        scores.new_empty(total_kept, dtype=torch.int64),
        scores.new_empty(num_pools),
        scores.new_empty(num_pools),
    )


def _backward_kernel(
    grad_kept: Tensor,  # [K, D]
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # [T]
    indices: Tensor,  # [K]
    pivots: Tensor,  # [S]
    shifts: Tensor,  # [S]
    cu_lengths: Tensor,  # [S + 1]
    temperature: float,
    scale: float,
    output_mask: list[bool],  # tokens, scores
) -> tuple[Tensor, Tensor]:
    grad_tokens, grad_scores = tokens.new_empty(0), scores.new_empty(0)
    if output_mask[0]:
        grad_tokens = tokens.new_zeros(tokens.shape).index_copy_(0, indices, grad_kept * scale)
    if output_mask[1]:
        credit = torch.zeros_like(scores)
        for rows, grads in zip(indices.split(reference.CHUNK_ROWS), grad_kept.split(reference.CHUNK_ROWS), strict=True):
            credit[rows] = (tokens[rows].float() * grads.float()).sum(dim=1)
        grad_scores = score_gradient(credit, scores, pivots, shifts, cu_lengths, temperature)
    return grad_tokens, grad_scores


def score_gradient(
    credit: Tensor, scores: Tensor, pivots: Tensor, shifts: Tensor, cu_lengths: Tensor, temperature: float
) -> Tensor:
    """``J credit`` of every pool."""
    grad = torch.empty_like(scores)
    for pool, (rows, _) in enumerate(reference.pools(plan_of(cu_lengths))):
        logits = soft_logits(scores[rows], pivots[pool], shifts[pool], temperature)
        grad[rows] = soft_jacobian(credit[rows], scores[rows], logits, temperature)
    return grad


def _backward_fake(grad_kept, tokens, scores, indices, pivots, shifts, cu_lengths, temperature, scale, output_mask):
    return (
        tokens.new_empty(tokens.shape if output_mask[0] else 0),
        scores.new_empty(scores.shape if output_mask[1] else 0),
    )


_op = define(
    "straight_through_gather(Tensor tokens, Tensor scores, Tensor? selection_scores, Tensor cu_lengths, Tensor cu_ks, "
    "SymInt total_kept, SymInt max_length, float temperature, float scale) "
    "-> (Tensor kept, Tensor indices, Tensor pivots, Tensor shifts)",
    _kernel,
    _fake,
)
_backward_op = define(
    "straight_through_gather_backward(Tensor grad_kept, Tensor tokens, Tensor scores, Tensor indices, Tensor pivots, "
    "Tensor shifts, Tensor cu_lengths, float temperature, float scale, bool[] output_mask) "
    "-> (Tensor grad_tokens, Tensor grad_scores)",
    _backward_kernel,
    _backward_fake,
)
