"""gather_tokens_with: rows, their positions and their mask at once; gather_tokens is its public function."""

import torch

from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order


class GatherTokensWithFunction(torch.autograd.Function):
    """(tokens [T, D], indices [K], position_ids [..., T] or None, mask [T] or None) -> kept [K, D], kept position ids
    [..., K] and kept mask [K], empty where None."""

    @staticmethod
    def forward(ctx, tokens, indices, position_ids, mask):
        output = gather_tokens_with(tokens, indices, position_ids, mask)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(indices)
        ctx.total_tokens = tokens.shape[0]
        return output

    @staticmethod
    @first_order
    def backward(ctx, grad_kept, *_):
        grad = torch.ops.vs_kernels.gather_tokens_backward(grad_kept, *ctx.saved_tensors, ctx.total_tokens)
        return grad, None, None, None


def _kernel(tokens, indices, position_ids, mask):
    kept = torch.ops.vs_kernels.gather_tokens(tokens, indices)
    return (
        kept,
        indices.new_empty(0) if position_ids is None else position_ids.index_select(-1, indices),
        indices.new_empty(0, dtype=torch.bool) if mask is None else mask.index_select(0, indices),
    )


def _fake(tokens, indices, position_ids, mask):
    kept = indices.shape[0]
    return (
        tokens.new_empty(kept, tokens.shape[1]),
        indices.new_empty(0 if position_ids is None else (*position_ids.shape[:-1], kept)),
        indices.new_empty(0 if mask is None else kept, dtype=torch.bool),
    )


gather_tokens_with = define(
    "gather_tokens_with(Tensor tokens, Tensor indices, Tensor? position_ids, Tensor? mask) "
    "-> (Tensor kept, Tensor position_ids, Tensor mask)",
    _kernel,
    _fake,
)
