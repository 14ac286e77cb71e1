"""The calls that the suites ``traffic`` and ``compile`` look at, with the launches and bytes that each may take."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

import vs_kernels
from vs_kernels import SelectionPlan, reference, verify
from vs_kernels.kernels import tiles
from vs_kernels.kernels.tiles import Tile
from vs_kernels.verify import Inputs

BUDGET = 0.2
# A selection longer than one program holds, narrow and with tall tiles, which the interpreter runs in
# seconds; neither changes what is moved of a row.
LONG_LENGTH, LONG_WIDTH, LONG_TILES = 65536, 64, {"row_dots": Tile(256, 64, 4)}


class Case(NamedTuple):
    """One call.

    Attributes:
        operator, shape: what the reader sees.
        call: runs it.
        launches: that it may take at most.
        rows: bytes of token rows, their gradients and weights that it must move at least; 0 where it moves none.
    """

    operator: str
    shape: str
    call: Callable[[], Any]
    launches: int
    rows: int


def long_cases(length: int) -> Iterator[Case]:
    """The operators that see scores alone, on one pool that many programs share, and beside a short one."""
    for lengths in ([length], [length, 100]):
        plan = SelectionPlan.from_budget(lengths, BUDGET)
        x = Inputs.random(plan, 1, 1, torch.float32)
        shape = " + ".join(f"N={pool:,}" for pool in lengths)
        for name in ("topk_indices", "topk_mask", "soft_topk", "soft_topk_with_loss", "topk_consistency_loss"):
            yield Case(name, shape, partial(verify.CALLS[name], vs_kernels, x), 4, 0)


def cases(length: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """All operators, forward and backward, on one pool of ``length`` tokens of ``width`` columns."""
    plan = SelectionPlan.from_budget([length], BUDGET)
    hidden, kept, ops = width // 2, plan.total_kept, torch.ops.vs_kernels
    x = Inputs.random(plan, width, hidden, dtype)
    indices, mask = reference.topk_indices(x.scores, plan), reference.topk_mask(x.scores, plan)
    cu_lengths, pool = plan.cu_lengths(), torch.zeros(1)
    vector, keys = torch.zeros(1, width), torch.zeros(1, hidden)
    one, weight = width * x.tokens.element_size(), hidden * width * x.weights[0].element_size()
    tokens, chosen = length * one, kept * one
    shape = f"N={length:,} D={width:,}"
    long = length > 16384

    def backward_of_scores(wanted: list[bool]) -> Callable[[], Any]:
        parts = (x.tokens, *x.weights[:3], vector, keys, vector, cu_lengths, wanted)
        return lambda: ops.importance_scores_backward(x.scores, *parts)

    def through(operator: str, grad: torch.Tensor, choice: torch.Tensor, wanted: list[bool]) -> Callable[[], Any]:
        call = getattr(ops, f"{operator}_backward")
        return lambda: call(grad, x.tokens, x.scores, choice, pool, pool, cu_lengths, 1.0, 0.5, wanted)

    def public(name: str) -> Callable[[], Any]:
        return lambda: verify.CALLS[name](vs_kernels, x)

    kept_rows = x.tokens[:kept]
    yield Case("importance_scores", shape, public("importance_scores"), 4, 2 * tokens + 2 * weight)
    weights_only = backward_of_scores([False, True, True, True, True])
    yield Case("  backward, weights", shape, weights_only, 5, tokens + 3 * weight)
    yield Case("  backward, all", shape, backward_of_scores([True] * 5), 5, 2 * tokens + 4 * weight)
    yield Case("topk_indices", shape, public("topk_indices"), 4 if long else 1, 0)
    yield Case("topk_mask", shape, public("topk_mask"), 4 if long else 1, 0)
    yield Case("soft_topk", shape, public("soft_topk"), 4 if long else 1, 0)
    soft_backward = (x.scores, pool, x.scores, pool, pool, cu_lengths, 1.0)
    yield Case("  backward", shape, lambda: ops.soft_topk_backward(*soft_backward), 1, 0)
    yield Case("soft_topk_with_loss", shape, public("soft_topk_with_loss"), 4 if long else 1, 0)
    with_loss = (x.scores, pool, pool[0], x.scores, pool, pool, x.scores, cu_lengths, 1.0)
    yield Case("  backward", shape, lambda: ops.soft_topk_with_loss_backward(*with_loss), 1, 0)
    yield Case("topk_consistency_loss", shape, public("topk_consistency_loss"), 4 if long else 1, 0)
    yield Case("gather_tokens", shape, lambda: ops.gather_tokens(x.tokens, indices), 1, 2 * chosen)
    scattered = (kept_rows, indices, length)
    yield Case("  backward", shape, lambda: ops.gather_tokens_backward(*scattered), 1, chosen + tokens)
    yield Case("straight_through_gather", shape, public("straight_through_gather"), 5 if long else 2, 2 * chosen)
    gathered = through("straight_through_gather", kept_rows, indices, [True, True])
    yield Case("  backward", shape, gathered, 2, 2 * chosen + tokens)
    yield Case("straight_through_mask", shape, public("straight_through_mask"), 5 if long else 2, 2 * tokens)
    masked = through("straight_through_mask", x.tokens, mask, [True, True])
    yield Case("  backward", shape, masked, 2, 3 * tokens)
    select = 2 * tokens + 2 * weight + 2 * chosen
    yield Case("select_tokens", shape, public("select_tokens"), 6, select)


def long_selection() -> Case:
    """select_tokens of one long pool."""
    *_, case = cases(LONG_LENGTH, LONG_WIDTH)

    def call() -> Any:
        with tiles.forced(LONG_TILES):
            return case.call()

    return case._replace(call=call)
