"""topk_mask: which rows a hard Top-K keeps, as a mask."""

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.checks import packed_scores
from vs_kernels.ops.sizes import plan_of
from vs_kernels.plan import SelectionPlan


def topk_mask(scores: Tensor, plan: SelectionPlan) -> Tensor:
    """True where :func:`topk_indices` keeps the row.

    Args:
        scores: float32, packed [T] or dense [B, N].
        plan: pools and how many tokens each keeps.

    Returns:
        bool, the shape of ``scores``. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
    """
    packed = packed_scores(scores, plan)
    cu_lengths, cu_ks = plan.offsets(scores.device)
    # without a gradient to record, autograd is left out
    mask = _op(packed, cu_lengths, cu_ks, plan.max_length)
    return mask if scores.dim() == 1 else mask.view(scores.shape)


class TopKMaskFunction(torch.autograd.Function):
    """(scores [T], cu_lengths [S + 1], cu_ks [S + 1], max_length) -> (mask [T],); no gradient."""

    @staticmethod
    def forward(ctx, scores, cu_lengths, cu_ks, max_length):
        output = (
            _op(scores, cu_lengths, cu_ks, max_length),
        )  # torch.compile traces a tuple, not a lone result without gradient
        ctx.mark_non_differentiable(*output)
        return output

    @staticmethod
    def backward(ctx, _):
        return None, None, None, None


def _kernel(scores, cu_lengths, cu_ks, max_length):
    return reference.topk_mask(scores, plan_of(cu_lengths, cu_ks))


def _fake(scores, cu_lengths, cu_ks, max_length):
    return scores.new_empty(scores.shape, dtype=torch.bool)


_op = define("topk_mask(Tensor scores, Tensor cu_lengths, Tensor cu_ks, SymInt max_length) -> Tensor", _kernel, _fake)
