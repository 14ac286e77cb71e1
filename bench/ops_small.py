"""What one operator call costs beyond its kernel, on a small image.

The overhead is what the same public call takes on one token of width 8: checks, dispatch, results, and the little that
is left of the kernel. The call on the image less its kernel would be the difference of two large times, all noise.

Beside it stands a call of PyTorch's own through the same dispatcher, with two tensors and one result: microseconds are
those of a machine, and where a neighbour shares a core, of a moment. That call chooses the moments which count.
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
    """One operator: the public call on ``inputs``, and on next to nothing, where PyTorch takes rows as well."""

    operator: str
    shape: str
    inputs: Inputs
    public: Call
    smallest: Call
    pytorch: Call


def small_calls(work: Workload) -> list[SmallCall]:
    """Every operator on one pool of a small image."""
    length, width = work.sizes.small, work.sizes.small_width
    image, token = (
        Inputs.random(SelectionPlan.from_budget([n], BUDGET), d, d // 2, torch.float32, str(work.device))
        for n, d in ((length, width), (1, 8))
    )
    shape = f"N={length:,} D={width:,}"
    smallest, pytorch = _public_calls(token), pytorch_call(work.device)
    return [
        SmallCall(name, shape, image, public, smallest[name], pytorch) for name, public in _public_calls(image).items()
    ]


def pytorch_call(device: torch.device) -> Call:
    """One row of one by index_select: what it takes tells how fast a core is at the moment."""
    rows, row = torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    return partial(torch.ops.aten.index_select.default, rows, 0, row)


def _public_calls(x: Inputs) -> dict[str, Call]:
    indices = reference.topk_indices(x.scores, x.plan)
    ops = vs_kernels
    return {
        "importance_scores": lambda: ops.importance_scores(x.tokens, *x.weights, x.plan),
        "topk_indices": lambda: ops.topk_indices(x.scores, x.plan),
        "topk_mask": lambda: ops.topk_mask(x.scores, x.plan),
        "soft_topk": lambda: ops.soft_topk(x.scores, x.plan, TEMPERATURE),
        "soft_topk_with_loss": lambda: ops.soft_topk_with_loss(x.scores, x.plan, TEMPERATURE),
        "topk_consistency_loss": lambda: ops.topk_consistency_loss(x.scores, x.plan, TEMPERATURE),
        "gather_tokens": lambda: ops.gather_tokens(x.tokens, indices),
        "straight_through_gather": lambda: ops.straight_through_gather(x.tokens, x.scores, x.plan, TEMPERATURE),
        "straight_through_mask": lambda: ops.straight_through_mask(x.tokens, x.scores, x.plan, TEMPERATURE),
        "select_tokens": lambda: ops.select_tokens(x.tokens, *x.weights, x.plan),
    }
