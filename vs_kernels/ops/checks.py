"""Argument checks: the argument, what came, what was expected, before any kernel runs.

Each ``packed_*`` returns the argument in the layout that the operators take: packed rows, pools side by side.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vs_kernels.plan import SelectionPlan

TOKEN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")


def check_plan(plan: object) -> None:
    if not isinstance(plan, SelectionPlan):
        raise TypeError(f"plan: got {type(plan).__name__}, expected a SelectionPlan")


def check_device(value: Tensor, name: str, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {device}, the device of the first argument")


def check_temperature(temperature: object) -> None:
    # the kernels multiply by its reciprocal, which float32 has to hold
    if not 1e-37 <= _number(temperature, "temperature") <= 1e37:
        raise ValueError(f"temperature: got {temperature}, expected a number from 1e-37 to 1e37")


def check_scale(scale: object, name: str) -> None:
    if not 0 <= _number(scale, name) < math.inf:
        raise ValueError(f"{name}: got {scale}, expected a finite number >= 0")


def check_share(share: object, name: str) -> None:
    if not 0 <= _number(share, name) <= 1:
        raise ValueError(f"{name}: got {share}, expected a number in [0, 1]")


def _number(value: object, name: str) -> Any:
    if isinstance(value, (bool, Tensor)) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a host number")
    return value


def packed_tokens(tokens: Tensor, plan: SelectionPlan | None) -> Tensor:
    """[T, D] from packed [T, D] or dense [B, N, D] tokens."""
    check_tensor(tokens, "tokens")
    if tokens.dtype not in TOKEN_DTYPES:
        raise TypeError(f"tokens: got {tokens.dtype}, expected float32, bfloat16 or float16")
    shape = tokens.shape
    dense = len(shape) == 3
    if not dense and len(shape) != 2:
        raise ValueError(f"tokens: got shape {tuple(shape)}, expected packed [T, D] or dense [B, N, D]")
    if not tokens.is_contiguous() and tokens.stride(-1) != 1 and shape[-1] > 1 and tokens.numel() > 0:
        raise ValueError(f"tokens: got a last stride of {tokens.stride(-1)}, expected contiguous rows (.contiguous())")
    if plan is not None:
        check_plan(plan)
        _check_layout(shape, "tokens", dense, plan)
    return tokens.reshape(-1, shape[-1]) if dense else tokens


def packed_scores(scores: Tensor, plan: SelectionPlan, name: str = "scores") -> Tensor:
    """Contiguous float32 [T] from packed [T] or dense [B, N] scores; cast to float32 under autocast."""
    check_tensor(scores, name)
    shape = scores.shape
    dense = len(shape) == 2
    if not dense and len(shape) != 1:
        raise ValueError(f"{name}: got shape {tuple(shape)}, expected packed [T] or dense [B, N]")
    if scores.dtype != torch.float32:
        if scores.dtype not in TOKEN_DTYPES or not torch.is_autocast_enabled(scores.device.type):
            raise TypeError(
                f"{name}: got {scores.dtype}, expected float32 (lower precision makes ties at the threshold)"
            )
        scores = scores.float()
    check_plan(plan)
    _check_layout(shape, name, dense, plan)
    return (scores.reshape(-1) if dense else scores).contiguous()


def packed_straight_through(
    tokens: Tensor, scores: Tensor, selection_scores: Tensor | None, plan: SelectionPlan
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Packed tokens, scores and, without gradient, the scores to rank by instead."""
    rows, packed = packed_tokens(tokens, plan), packed_scores(scores, plan)
    check_device(scores, "scores", tokens.device)
    if selection_scores is None:
        return rows, packed, None
    ranking = packed_scores(selection_scores, plan, "selection_scores").detach()
    check_device(selection_scores, "selection_scores", tokens.device)
    return rows, packed, ranking


def _check_layout(shape: torch.Size, name: str, dense: bool, plan: SelectionPlan) -> None:
    if dense:
        batch, length = shape[0], shape[1]
        # equal lengths without reading them one by one: the longest times the number is the sum
        if batch != plan.num_pools or batch * length != plan.total_tokens or (batch and length != plan.max_length):
            raise ValueError(
                f"{name}: got shape {tuple(shape)}, expected a plan of {batch} pools of {length} tokens each, "
                f"not of {plan.num_pools} pools with {plan.total_tokens} tokens and at most {plan.max_length}"
            )
    elif shape[0] != plan.total_tokens:
        raise ValueError(f"{name}: got {shape[0]} rows, expected {plan.total_tokens}, the plan's total_tokens")


def check_scorer_weights(tokens: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor) -> None:
    """Weights [h, D] and biases [h] of one scorer, on the device of the tokens."""
    # one by one, the checks are a sixth of a small call
    if _is_scorer(tokens, q_weight, q_bias, k_weight, k_bias):
        return
    width, device = tokens.shape[-1], tokens.device
    check_tensor(q_weight, "q_weight")
    matrix = q_weight.shape
    if len(matrix) != 2 or matrix[1] != width or matrix[0] == 0:
        raise ValueError(f"q_weight: got shape {tuple(matrix)}, expected [h > 0, {width}], the tokens' width")
    vector = (matrix[0],)
    _check_weight(q_weight, "q_weight", matrix, device)
    _check_weight(q_bias, "q_bias", vector, device)
    _check_weight(k_weight, "k_weight", matrix, device)
    _check_weight(k_bias, "k_bias", vector, device)


def _is_scorer(tokens: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor) -> bool:
    try:
        hidden, width = matrix = q_weight.shape
        device, dtypes = tokens.device, TOKEN_DTYPES
        return (
            width == tokens.shape[-1]
            and hidden > 0
            and matrix == k_weight.shape
            and (hidden,) == q_bias.shape == k_bias.shape
            and q_weight.dtype in dtypes
            and q_bias.dtype in dtypes
            and k_weight.dtype in dtypes
            and k_bias.dtype in dtypes
            and device == q_weight.device == q_bias.device == k_weight.device == k_bias.device
        )
    except (AttributeError, ValueError):  # no tensor, no matrix
        return False


def _check_weight(value: Tensor, name: str, shape: tuple[int, ...], device: torch.device) -> None:
    check_tensor(value, name)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {list(shape)} beside q_weight")
    if value.dtype not in TOKEN_DTYPES:
        raise TypeError(f"{name}: got {value.dtype}, expected float32, bfloat16 or float16")
    check_device(value, name, device)


def check_indices(indices: Tensor, tokens: Tensor) -> None:
    """int64 [K] on the device of the tokens; the values are the kernel's to check."""
    check_tensor(indices, "indices")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices: got {indices.dtype}, expected int64")
    if indices.dim() != 1:
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected [K]")
    check_device(indices, "indices", tokens.device)
