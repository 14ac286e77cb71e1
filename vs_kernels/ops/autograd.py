"""How a public function calls its operator: through autograd where a gradient may be asked for, else directly."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def wants_autograd(*inputs: Tensor) -> bool:
    """Whether the operator's Function must be applied to these; its operator alone costs half as much.

    Forward-mode derivatives go to the Function, which says that it has none; the operator would drop them.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for tensor in inputs:
            if tensor.requires_grad:
                return True
    return False


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``once_differentiable``, of which a backward that nobody differentiates again does not pay the price."""
    checked = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        return (checked if torch.is_grad_enabled() else backward)(ctx, *grads)

    return run
