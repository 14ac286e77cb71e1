"""Every operator against its definition in float64: what ``vs-kernels verify`` and the tests compare.

The rule for tolerances, one for all: the error of a result may be at most twice the error of the same definition
evaluated in float32, plus a floor for the rounding of the result itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vs_kernels import reference
from vs_kernels.plan import SelectionPlan

# Floors, relative to the largest true value: a few roundings of a float32 sum; one rounding of a 16-bit result.
FLOORS = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
TEMPERATURE = 0.5


@dataclass
class Inputs:
    """Arguments of all operators for one plan."""

    plan: SelectionPlan
    tokens: Tensor  # [T, D]
    scores: Tensor  # [T]
    weights: tuple[Tensor, ...]

    @classmethod
    def random(
        cls, plan: SelectionPlan, width: int, hidden: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
    ) -> "Inputs":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        tokens = normal(plan.total_tokens, width) + normal(width)
        weights = (
            normal(hidden, width) * width**-0.5,
            normal(hidden),
            normal(hidden, width) * width**-0.5,
            normal(hidden),
        )
        scores = normal(plan.total_tokens)
        return cls(
            plan,
            tokens.to(device, dtype),
            scores.to(device),
            tuple(weight.to(device, dtype) for weight in weights),
        )

    def leaves(self, dtype: torch.dtype | None = None) -> "Inputs":
        """The same values as leaves that require a gradient, in ``dtype`` or as they are."""

        def leaf(value: Tensor) -> Tensor:
            return value.detach().to(dtype or value.dtype).requires_grad_()

        tokens, scores = leaf(self.tokens), leaf(self.scores)
        return Inputs(self.plan, tokens, scores, tuple(leaf(weight) for weight in self.weights))

    def differentiable(self) -> dict[str, Tensor]:
        names = ("q_weight", "q_bias", "k_weight", "k_bias")
        return {"tokens": self.tokens, "scores": self.scores, **dict(zip(names, self.weights, strict=True))}


def _gather(ops: Any, x: Inputs) -> Any:
    return ops.gather_tokens(x.tokens, reference.topk_indices(x.scores.detach(), x.plan))


# One call per operator. The first argument is the package or its reference: both have the same functions.
CALLS: dict[str, Callable[[Any, Inputs], Any]] = {
    "importance_scores": lambda ops, x: ops.importance_scores(x.tokens, *x.weights, x.plan),
    "topk_indices": lambda ops, x: ops.topk_indices(x.scores, x.plan),
    "topk_mask": lambda ops, x: ops.topk_mask(x.scores, x.plan),
    "soft_topk": lambda ops, x: ops.soft_topk(x.scores, x.plan, TEMPERATURE),
    "soft_topk_with_loss": lambda ops, x: ops.soft_topk_with_loss(x.scores, x.plan, TEMPERATURE),
    "topk_consistency_loss": lambda ops, x: ops.topk_consistency_loss(x.scores, x.plan, TEMPERATURE),
    "gather_tokens": _gather,
    "straight_through_gather": lambda ops, x: ops.straight_through_gather(
        x.tokens, x.scores, x.plan, TEMPERATURE, scale=0.5
    ),
    "straight_through_mask": lambda ops, x: ops.straight_through_mask(
        x.tokens, x.scores, x.plan, TEMPERATURE, dropped_scale=0.25
    ),
    "select_tokens": lambda ops, x: ops.select_tokens(x.tokens, *x.weights, x.plan)[:3],
}
TAKES_TOKENS = CALLS.keys() - {"topk_indices", "topk_mask", "soft_topk", "soft_topk_with_loss", "topk_consistency_loss"}


def results(ops: Any, name: str, inputs: Inputs, seed: int = 1) -> dict[str, Tensor]:
    """Outputs of one operator, and the gradients of its inputs for a fixed random gradient of the outputs."""
    outputs = CALLS[name](ops, inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    smooth = [output for output in outputs if output.requires_grad]
    if smooth:
        generator = torch.Generator().manual_seed(seed)
        # rounded, so that runs in any dtype get the same gradient
        cotangents = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in smooth]
        finite = [torch.where(out.detach().isfinite(), grad, 0.0) for out, grad in zip(smooth, cotangents, strict=True)]
        leaves = inputs.differentiable()
        grads = torch.autograd.grad(smooth, list(leaves.values()), finite, allow_unused=True)
        named |= {f"grad of {leaf}": grad for leaf, grad in zip(leaves, grads, strict=True) if grad is not None}
    return named


class Collapsed:
    """The definitions, but the scores without their N x N matrix, which would not fit the memory for long pools."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    @staticmethod
    def importance_scores(
        tokens: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, plan: SelectionPlan
    ) -> Tensor:
        weights = q_weight, q_bias, k_weight, k_bias
        # Pool after pool: the collapsed form writes those of several into one tensor, which has no gradient.
        alone = ((tokens[rows], SelectionPlan([rows.stop - rows.start], [k])) for rows, k in reference.pools(plan))
        return torch.cat([reference.importance_scores_collapsed(x, *weights, one)[0] for x, one in alone])

    def select_tokens(self, tokens: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.importance_scores(tokens, *arguments)
        indices = reference.topk_indices(scores.detach(), arguments[-1])
        return tokens[indices], indices, scores


def errors(
    ops: ModuleType, name: str, inputs: Inputs, definition: ModuleType | Collapsed = reference
) -> Iterator[tuple[str, float, float]]:
    """(result, error, allowed error) for every output and gradient of one operator.

    Errors are absolute, the largest over the result; exact results (indices, masks) count differing entries.
    """
    actual = results(ops, name, inputs.leaves())
    host = Inputs(
        inputs.plan,
        inputs.tokens.cpu(),
        inputs.scores.cpu(),
        tuple(weight.cpu() for weight in inputs.weights),
    )
    truth = results(definition, name, host.leaves(torch.float64))
    single = results(definition, name, host.leaves(torch.float32))
    if name == "select_tokens":
        # near ties rank by the scores as computed: the choice must fit them, and the rows must fit the choice
        indices = reference.topk_indices(actual["output 2"].cpu(), inputs.plan)
        truth["output 1"] = single["output 1"] = indices
        truth["output 0"] = single["output 0"] = host.tokens[indices].double()
        for named in (actual, truth, single):
            named.pop("grad of tokens")
    if actual.keys() != truth.keys():
        raise AssertionError(f"{name}: got results {sorted(actual)}, expected {sorted(truth)}")
    for result, value in actual.items():
        yield result, *_error(value.cpu(), truth[result], single[result])


def _error(actual: Tensor, truth: Tensor, single: Tensor) -> tuple[float, float]:
    if actual.shape != truth.shape:
        raise AssertionError(f"got shape {tuple(actual.shape)}, expected {tuple(truth.shape)}")
    if actual.numel() == 0:
        return 0.0, 0.0
    if not actual.dtype.is_floating_point:
        return float((actual != truth).sum()), 0.0
    # equal infinities are exact; an infinity or NaN anywhere else is an infinite error
    difference = torch.where(actual == truth, 0.0, (actual.double() - truth).abs()).nan_to_num(nan=torch.inf)
    finite = truth.isfinite()
    size = float(truth[finite].abs().max()) if finite.any() else 0.0
    rounding = torch.where(finite, (single.double() - truth).abs(), 0.0).max()
    return float(difference.max()), 2 * float(rounding) + FLOORS[actual.dtype] * size


def worst_error(
    ops: ModuleType, name: str, inputs: Inputs, definition: ModuleType | Collapsed = reference
) -> tuple[str, bool]:
    """The result that comes nearest to its allowed error, in words, and whether all stay within."""
    found = list(errors(ops, name, inputs, definition))
    wrong = [entry for entry in found if not entry[1] <= entry[2]]
    result, error, allowed = max(wrong or found, key=lambda entry: entry[1] / entry[2] if entry[2] else entry[1])
    return (f"{error:.1e} / {allowed:.1e} {result}" if allowed else f"{error:.0f} differ {result}"), not wrong
