"""straight_through_mask: damp dropped tokens in the forward, learn through the soft Top-K in the backward."""

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_scale, check_temperature, packed_straight_through
from vs_kernels.ops.sizes import plan_of
from vs_kernels.ops.soft_topk import solve
from vs_kernels.ops.straight_through_gather import score_gradient
from vs_kernels.plan import SelectionPlan


def straight_through_mask(
    tokens: Tensor,  # [T, D] or [B, N, D]
    scores: Tensor,  # [T] or [B, N]
    plan: SelectionPlan,
    temperature: float = 1.0,
    *,
    dropped_scale: float = 0.0,
    selection_scores: Tensor | None = None,
) -> Tensor:
    """All rows, those that a hard Top-K drops times ``dropped_scale``, with the gradient of a soft Top-K.

    Every row, dropped ones included, has the credit ``a_i = <grad_out_i, x_i>``; the scores get ``J a``, with J the
    Jacobian of :func:`soft_topk`; the tokens get ``grad_out_i`` times the row's own factor.

    Args:
        tokens: packed [T, D] or dense [B, N, D]; float32, bfloat16 or float16; contiguous rows, any row stride.
        scores: float32, packed [T] or dense [B, N]; they carry the gradient.
        plan: pools and how many tokens each keeps.
        temperature: from 1e-37 to 1e37, of the soft Top-K.
        dropped_scale: >= 0, factor of dropped rows. 0 puts the RMSNorm of a pre-norm transformer at its singular
            point, where dropped tokens get thousands of times the credit of kept ones: train with 0.01 to 0.2.
        selection_scores: rank the tokens by these instead, for example scores with exploration noise; no gradient.

    Returns:
        rows in the shape and dtype of the tokens.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    rows, packed, ranking = packed_straight_through(tokens, scores, selection_scores, plan)
    check_temperature(temperature)
    check_scale(dropped_scale, "dropped_scale")
    cu_lengths, cu_ks = plan.offsets(tokens.device)
    damp = StraightThroughMaskFunction.apply if wants_autograd(rows, packed) else _op
    out, _, _, _ = damp(rows, packed, ranking, cu_lengths, cu_ks, plan.max_length, temperature, dropped_scale)
    return out if tokens.dim() == 2 else out.view(tokens.shape)


class StraightThroughMaskFunction(torch.autograd.Function):
    """(tokens [T, D], scores [T], selection_scores [T] or None, cu_lengths [S + 1], cu_ks [S + 1], max_length,
    temperature, dropped_scale) -> rows [T, D], and the backward's mask [T], pivots [S] and shifts [S]."""

    @staticmethod
    def forward(ctx, tokens, scores, selection_scores, cu_lengths, cu_ks, max_length, temperature, dropped_scale):
        output = _op(tokens, scores, selection_scores, cu_lengths, cu_ks, max_length, temperature, dropped_scale)
        _, mask, pivots, shifts = output
        ctx.mark_non_differentiable(mask, pivots, shifts)
        ctx.save_for_backward(tokens, scores, mask, pivots, shifts, cu_lengths)
        ctx.temperature, ctx.dropped_scale = temperature, dropped_scale
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_out, *_):
        wanted = list(ctx.needs_input_grad[:2])
        grads = _backward_op(grad_out, *ctx.saved_tensors, ctx.temperature, ctx.dropped_scale, wanted)
        grad_tokens, grad_scores = (grad if want else None for grad, want in zip(grads, wanted, strict=True))
        return grad_tokens, grad_scores, None, None, None, None, None, None


def _kernel(tokens, scores, selection_scores, cu_lengths, cu_ks, max_length, temperature, dropped_scale):
    plan = plan_of(cu_lengths, cu_ks)
    mask = reference.topk_mask(scores if selection_scores is None else selection_scores, plan)
    pivots, shifts = solve(scores, plan, temperature)
    return tokens * _factors(mask, dropped_scale, tokens.dtype), mask, pivots, shifts


def _factors(mask: Tensor, dropped_scale: float, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, 1.0, dropped_scale).to(dtype)[:, None]


def _fake(tokens, scores, selection_scores, cu_lengths, cu_ks, max_length, temperature, dropped_scale):
    num_pools = cu_lengths.shape[0] - 1
    return (
        tokens.new_empty(tokens.shape),
        scores.new_empty(scores.shape, dtype=torch.bool),
        scores.new_empty(num_pools),
        scores.new_empty(num_pools),
    )


def _backward_kernel(
    grad_out: Tensor,  # [T, D]
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # [T]
    mask: Tensor,  # [T]
    pivots: Tensor,  # [S]
    shifts: Tensor,  # [S]
    cu_lengths: Tensor,  # [S + 1]
    temperature: float,
    dropped_scale: float,
    output_mask: list[bool],  # tokens, scores
) -> tuple[Tensor, Tensor]:
    grad_tokens, grad_scores = tokens.new_empty(0), scores.new_empty(0)
    if output_mask[0]:
        grad_tokens = grad_out * _factors(mask, dropped_scale, grad_out.dtype)
    if output_mask[1]:
        chunks = zip(tokens.split(reference.CHUNK_ROWS), grad_out.split(reference.CHUNK_ROWS), strict=True)
        credit = torch.cat([(rows.float() * grads.float()).sum(dim=1) for rows, grads in chunks])
        grad_scores = score_gradient(credit, scores, pivots, shifts, cu_lengths, temperature)
    return grad_tokens, grad_scores


def _backward_fake(grad_out, tokens, scores, mask, pivots, shifts, cu_lengths, temperature, dropped_scale, output_mask):
    return (
        tokens.new_empty(tokens.shape if output_mask[0] else 0),
        scores.new_empty(scores.shape if output_mask[1] else 0),
    )


_op = define(
    "straight_through_mask(Tensor tokens, Tensor scores, Tensor? selection_scores, Tensor cu_lengths, Tensor cu_ks, "
    "SymInt max_length, float temperature, float dropped_scale) "
    "-> (Tensor out, Tensor mask, Tensor pivots, Tensor shifts)",
    _kernel,
    _fake,
)
_backward_op = define(
    "straight_through_mask_backward(Tensor grad_out, Tensor tokens, Tensor scores, Tensor mask, Tensor pivots, "
    "Tensor shifts, Tensor cu_lengths, float temperature, float dropped_scale, bool[] output_mask) "
    "-> (Tensor grad_tokens, Tensor grad_scores)",
    _backward_kernel,
    _backward_fake,
)
