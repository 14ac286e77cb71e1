"""What one operator call costs beyond its kernel, on a small image.

The overhead is the public call less the dispatcher's operator on the same arguments (checks, autograd), plus the
dispatcher's operator on one token of width 8, where the kernel has nothing to do (dispatch, unboxing, results).
"""

from functools import partial
from typing import NamedTuple

import torch

import vs_kernels
from bench.ops_timing import Call
from bench.ops_workload import BUDGET, Workload
from vs_kernels import SelectionPlan, reference
from vs_kernels.verify import TEMPERATURE, Inputs

MOST_MICROSECONDS = 15.0


class SmallCall(NamedTuple):
    """One operator on ``inputs``: the public call, the dispatcher's operator, and that on next to nothing."""

    operator: str
    shape: str
    inputs: Inputs
    public: Call
    bare: Call
    smallest: Call


def small_calls(work: Workload) -> list[SmallCall]:
    """Every operator on one pool of a small image."""
    length, width = work.sizes.small, work.sizes.small_width
    image, token = (
        Inputs.random(SelectionPlan.from_budget([n], BUDGET), d, d // 2, torch.float32, str(work.device))
        for n, d in ((length, width), (1, 8))
    )
    shape = f"N={length:,} D={width:,}"
    bare, smallest = _bare_calls(image), _bare_calls(token)
    return [
        SmallCall(name, shape, image, public, bare[name], smallest[name])
        for name, public in _public_calls(image).items()
    ]


def _public_calls(x: Inputs) -> dict[str, Call]:
    indices = reference.topk_indices(x.scores, x.plan)
    ops = vs_kernels
    return {
        "importance_scores": lambda: ops.importance_scores(x.tokens, *x.weights, x.plan),
        "topk_indices": lambda: ops.topk_indices(x.scores, x.plan),
        "topk_mask": lambda: ops.topk_mask(x.scores, x.plan),
        "soft_topk": lambda: ops.soft_topk(x.scores, x.plan, TEMPERATURE),
        "topk_consistency_loss": lambda: ops.topk_consistency_loss(x.scores, x.plan, TEMPERATURE),
        "gather_tokens": lambda: ops.gather_tokens(x.tokens, indices),
        "straight_through_gather": lambda: ops.straight_through_gather(x.tokens, x.scores, x.plan, TEMPERATURE),
        "straight_through_mask": lambda: ops.straight_through_mask(x.tokens, x.scores, x.plan, TEMPERATURE),
        "select_tokens": lambda: ops.select_tokens(x.tokens, *x.weights, x.plan),
    }


def _bare_calls(x: Inputs) -> dict[str, Call]:
    """The same through ``torch.ops``, with the overload looked up beforehand."""
    indices = reference.topk_indices(x.scores, x.plan)
    lengths, kept, longest = x.plan.cu_lengths(x.tokens.device), x.plan.total_kept, x.plan.max_length
    pools = lengths, x.plan.cu_ks(x.tokens.device)
    arguments = {
        "importance_scores": (x.tokens, *x.weights, lengths),
        "topk_indices": (x.scores, *pools, kept, longest),
        "topk_mask": (x.scores, *pools, longest),
        "soft_topk": (x.scores, *pools, longest, TEMPERATURE),
        "topk_consistency_loss": (x.scores, *pools, longest, TEMPERATURE),
        "gather_tokens": (x.tokens, indices),
        "straight_through_gather": (x.tokens, x.scores, None, *pools, kept, longest, TEMPERATURE, 1.0),
        "straight_through_mask": (x.tokens, x.scores, None, *pools, longest, TEMPERATURE, 0.0),
        "select_tokens": (x.tokens, *x.weights, *pools, kept, longest),
    }
    return {name: partial(getattr(torch.ops.vs_kernels, name).default, *args) for name, args in arguments.items()}
