"""select_tokens: score, Top-K and gather in one call."""

import torch
from torch import Tensor

from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_plan, check_scorer_weights, packed_tokens
from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection


def select_tokens(
    tokens: Tensor,  # [T, D] or [B, N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    plan: SelectionPlan,
) -> Selection:
    """What a selector does in inference: :func:`importance_scores`, :func:`topk_indices`, :func:`gather_tokens`.

    Args:
        tokens: packed [T, D] or dense [B, N, D]; float32, bfloat16 or float16; contiguous rows, any row stride.
        q_weight, q_bias, k_weight, k_bias: the scorer, as for :func:`importance_scores`.
        plan: pools and how many tokens each keeps.

    Returns:
        :class:`Selection` with ``tokens`` [K, D], ``indices`` [K], ``scores`` in the shape of the tokens without D,
        and ``plan``; ``probs`` and ``loss`` are None. Kept tokens and scores are differentiable; the choice is not
        (use :func:`straight_through_gather` to train through it).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
    """
    check_plan(plan)
    rows = packed_tokens(tokens, plan)
    check_scorer_weights(tokens, q_weight, q_bias, k_weight, k_bias)
    cu_lengths, cu_ks = plan.offsets(tokens.device)
    inputs = rows, q_weight, q_bias, k_weight, k_bias
    select = SelectTokensFunction.apply if wants_autograd(*inputs) else _op
    kept, indices, scores = select(*inputs, cu_lengths, cu_ks, plan.total_kept, plan.max_length)
    if tokens.dim() == 3:
        scores = scores.view(tokens.shape[:-1])
    return Selection(kept, indices, scores, None, None, plan)


class SelectTokensFunction(torch.autograd.Function):
    """(tokens [T, D], q_weight, q_bias, k_weight, k_bias, cu_lengths [S + 1], cu_ks [S + 1], total_kept,
    max_length) -> kept [K, D], indices [K], scores [T]."""

    @staticmethod
    def forward(ctx, tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, cu_ks, total_kept, max_length):
        output = _op(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, cu_ks, total_kept, max_length)
        _, indices, _ = output
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices, tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths)
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_kept, _, grad_scores):
        indices, tokens, *weights, cu_lengths = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:5])
        grads: list[Tensor | None] = [None] * 5
        if grad_scores is not None:
            # few ask for this gradient: the way to the scores is gone again rather than kept by every forward
            ops = torch.ops.vs_kernels
            _, *parts = ops.importance_scores(tokens, *weights, cu_lengths)
            found = ops.importance_scores_backward(grad_scores, tokens, *weights[:3], *parts, cu_lengths, wanted)
            grads = [grad if want else None for grad, want in zip(found, wanted, strict=True)]
        if grad_kept is not None and wanted[0]:
            scattered = torch.ops.vs_kernels.gather_tokens_backward(grad_kept, indices, tokens.shape[0])
            grads[0] = scattered if grads[0] is None else grads[0] + scattered
        return *grads, None, None, None, None


def _kernel(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, cu_ks, total_kept, max_length):
    ops = torch.ops.vs_kernels
    scores, *_ = ops.importance_scores(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths)
    indices = ops.topk_indices(scores, cu_lengths, cu_ks, total_kept, max_length)
    return ops.gather_tokens(tokens, indices), indices, scores


def _fake(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, cu_ks, total_kept, max_length):
    return (
        tokens.new_empty(total_kept, tokens.shape[1]),
        tokens.new_empty(total_kept, dtype=torch.int64),
        tokens.new_empty(tokens.shape[0], dtype=torch.float32),
    )


_op = define(
    "select_tokens(Tensor tokens, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, Tensor cu_lengths, "
    "Tensor cu_ks, SymInt total_kept, SymInt max_length) -> (Tensor kept, Tensor indices, Tensor scores)",
    _kernel,
    _fake,
)
