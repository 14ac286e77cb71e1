"""topk_indices: the rows that a hard Top-K keeps."""

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.library import define
from vs_kernels.ops.checks import packed_scores
from vs_kernels.ops.sizes import plan_of
from vs_kernels.plan import SelectionPlan


def topk_indices(scores: Tensor, plan: SelectionPlan) -> Tensor:
    """Rows of the k largest scores of every pool, in ascending order.

    Deterministic and the same on every backend: ties go to the smaller row, NaN ranks below -Inf and is kept
    only where the numbers run out, -0 equals +0.

    Args:
        scores: float32, packed [T] or dense [B, N].
        plan: pools and how many tokens each keeps.

    Returns:
        int64 [plan.total_kept]: rows of the packed tokens, pool after pool. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
    """
    packed = packed_scores(scores, plan)
    cu_lengths, cu_ks = plan.offsets(scores.device)
    # without a gradient to record, autograd is left out
    return _op(packed, cu_lengths, cu_ks, plan.total_kept, plan.max_length)


class TopKIndicesFunction(torch.autograd.Function):
    """(scores [T], cu_lengths [S + 1], cu_ks [S + 1], total_kept, max_length) -> (indices [K],); no gradient."""

    @staticmethod
    def forward(ctx, scores, cu_lengths, cu_ks, total_kept, max_length):
        output = (
            _op(scores, cu_lengths, cu_ks, total_kept, max_length),
        )  # torch.compile traces a tuple, not a lone result without gradient
        ctx.mark_non_differentiable(*output)
        return output

    @staticmethod
    def backward(ctx, _):
        return None, None, None, None, None


def _kernel(scores, cu_lengths, cu_ks, total_kept, max_length):
    return reference.topk_indices(scores, plan_of(cu_lengths, cu_ks))


def _fake(scores, cu_lengths, cu_ks, total_kept, max_length):
    return scores.new_empty(total_kept, dtype=torch.int64)


_op = define(
    "topk_indices(Tensor scores, Tensor cu_lengths, Tensor cu_ks, SymInt total_kept, SymInt max_length) -> Tensor",
    _kernel,
    _fake,
)
