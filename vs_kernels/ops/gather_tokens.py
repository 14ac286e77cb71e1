"""gather_tokens: the kept rows, with a backward that writes each row once."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vs_kernels.library import define
from vs_kernels.ops.checks import check_indices, packed_tokens


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows ``indices`` of the tokens.

    Args:
        tokens: packed [T, D] or dense [B, N, D], whose rows count as packed; float32, bfloat16 or float16.
        indices: int64 [K], strictly ascending rows of the packed tokens, as :func:`topk_indices` returns them.
            Values are checked on the CPU; elsewhere the check would wait for the device, and rows out of range or
            repeated are undefined behaviour.

    Returns:
        [K, D] in the dtype of the tokens. The backward writes every row of the gradient once: gathered or zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    rows = packed_tokens(tokens, None)
    check_indices(indices, rows)
    try:
        return GatherTokensFunction.apply(rows, indices)
    except RuntimeError as error:
        # a kernel on the CPU checks the values as it reads them, and C++ can raise nothing but RuntimeError
        _, name, problem = str(error).partition("indices: ")
        if not name:
            raise
        raise ValueError(name + problem) from None


class GatherTokensFunction(torch.autograd.Function):
    """(tokens [T, D], indices [K]) -> kept [K, D]."""

    @staticmethod
    def forward(ctx, tokens, indices):
        kept = _op(tokens, indices)
        ctx.save_for_backward(indices)
        ctx.total_tokens = tokens.shape[0]
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_kept):
        return _backward_op(grad_kept, *ctx.saved_tensors, ctx.total_tokens), None


def _kernel(tokens, indices):
    if indices.device.type == "cpu":
        rows = indices.tolist()
        for previous, row in zip([-1, *rows], rows, strict=False):
            if not previous < row < tokens.shape[0]:
                raise ValueError(
                    f"indices: got {row} after {previous}, expected strictly ascending rows below {tokens.shape[0]}"
                )
    return tokens.index_select(0, indices)


def _fake(tokens, indices):
    return tokens.new_empty(indices.shape[0], tokens.shape[1])


def _backward_kernel(grad_kept, indices, total_tokens):
    grad = grad_kept.new_zeros(total_tokens, grad_kept.shape[1])
    return grad.index_copy_(0, indices, grad_kept)


def _backward_fake(grad_kept, indices, total_tokens):
    return grad_kept.new_empty(total_tokens, grad_kept.shape[1])


_op = define("gather_tokens(Tensor tokens, Tensor indices) -> Tensor", _kernel, _fake)
_backward_op = define(
    "gather_tokens_backward(Tensor grad_kept, Tensor indices, SymInt total_tokens) -> Tensor",
    _backward_kernel,
    _backward_fake,
)
