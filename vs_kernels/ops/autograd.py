"""How a public function calls its operator: through autograd where a gradient may be asked for, else directly."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


def call(function: type[torch.autograd.Function], operator: Callable[..., Any], *args: Any) -> Any:
    """``function.apply(*args)``, or ``operator(*args)``, which costs half as much, where no tensor needs a gradient.

    Forward-mode derivatives go to the Function, which says that it has none; the operator would drop them.
    """
    if forward_ad._current_level >= 0:
        return function.apply(*args)
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return function.apply(*args)
    return operator(*args)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``once_differentiable``, of which a backward that nobody differentiates again does not pay the price."""
    checked = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        return (checked if torch.is_grad_enabled() else backward)(ctx, *grads)

    return run
