"""gather_tokens: the kept rows, with a backward that writes each row once."""

from typing import overload

import torch
from torch import Tensor

from vs_kernels.library import define
from vs_kernels.ops.autograd import first_order, wants_autograd
from vs_kernels.ops.checks import check_device, check_indices, check_tensor, packed_tokens
from vs_kernels.ops.gather_tokens_with import GatherTokensWithFunction, gather_tokens_with


@overload
def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor: ...


@overload
def gather_tokens(
    tokens: Tensor, indices: Tensor, *, position_ids: Tensor | None = ..., mask: Tensor | None = ...
) -> tuple[Tensor, ...]: ...


def gather_tokens(
    tokens: Tensor,  # [T, D] or [B, N, D]
    indices: Tensor,  # int64 [K]
    *,
    position_ids: Tensor | None = None,  # int64 [T] or [R, T]
    mask: Tensor | None = None,  # bool [T]
) -> Tensor | tuple[Tensor, ...]:
    """Rows ``indices`` of the tokens; where given, their positions and mask with them, in the same launch.

    Args:
        tokens: packed [T, D] or dense [B, N, D], whose rows count as packed; float32, bfloat16 or float16.
        indices: int64 [K], strictly ascending rows of the packed tokens, as :func:`topk_indices` returns them.
            Values are checked on the CPU; elsewhere the check would wait for the device, and rows out of range or
            repeated are undefined behaviour.

        position_ids: int64 [T], or [R, T] for R rotary axes.
        mask: bool [T].

    Returns:
        [K, D] in the dtype of the tokens. The backward writes every row of the gradient once: gathered or zero. With
        ``position_ids`` or ``mask`` a tuple: the rows, then the positions [K] or [R, K], then the mask [K], as given.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
    """
    rows = packed_tokens(tokens, None)
    check_indices(indices, rows)
    extras = position_ids is not None or mask is not None
    if extras:
        _check_extras(rows, position_ids, mask)
    try:
        if not extras:
            gather = GatherTokensFunction.apply if wants_autograd(rows) else _op
            return gather(rows, indices)
        gather_with = GatherTokensWithFunction.apply if wants_autograd(rows) else gather_tokens_with
        kept, positions, kept_mask = gather_with(rows, indices, position_ids, mask)
        results = ((True, kept), (position_ids is not None, positions), (mask is not None, kept_mask))
        return tuple(result for given, result in results if given)
    except RuntimeError as error:
        # a kernel on the CPU checks the values as it reads them, and C++ can raise nothing but RuntimeError
        _, name, problem = str(error).partition("indices: ")
        if not name:
            raise
        raise ValueError(name + problem) from None


def _check_extras(rows: Tensor, position_ids: Tensor | None, mask: Tensor | None) -> None:
    total = rows.shape[0]
    for value, name, dtype, dims, expected in (
        (position_ids, "position_ids", torch.int64, (1, 2), f"[{total}] or [R, {total}]"),
        (mask, "mask", torch.bool, (1,), f"[{total}]"),
    ):
        if value is None:
            continue
        check_tensor(value, name)
        if value.dtype != dtype:
            raise TypeError(f"{name}: got {value.dtype}, expected {str(dtype).removeprefix('torch.')}")
        if value.dim() not in dims or value.shape[-1] != total:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {expected}")
        check_device(value, name, rows.device)


class GatherTokensFunction(torch.autograd.Function):
    """(tokens [T, D], indices [K]) -> kept [K, D]."""

    @staticmethod
    def forward(ctx, tokens, indices):
        kept = _op(tokens, indices)
        ctx.save_for_backward(indices)
        ctx.total_tokens = tokens.shape[0]
        return kept

    @staticmethod
    @first_order
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
