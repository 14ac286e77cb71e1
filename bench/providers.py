"""Who else computes what an operator computes: by operator, the competitors, and why one is missing."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import ops_eager, published
from vs_kernels.verify import Inputs

TEMPERATURE, DROPPED_SCALE = 1.0, 0.1
Forward = Callable[[Inputs, Tensor], tuple[Tensor, ...]]  # inputs, rows of the kept tokens


class Missing(Exception):
    """A provider that cannot run here; the message says why."""


class Operator(NamedTuple):
    """Attributes:
    ours: from the package or its reference, the outputs.
    leaves: names of the inputs that get a gradient; empty where there is none.
    others: competitors by name; they give the first outputs of ``ours``.
    """

    ours: Callable[[Any, Inputs, Tensor], tuple[Tensor, ...]]
    leaves: tuple[str, ...]
    others: dict[str, Forward]


def _k(x: Inputs) -> int:
    return x.plan.total_kept


def flashinfer_indices(x: Inputs, kept: Tensor) -> tuple[Tensor, ...]:
    """By FlashInfer's radix Top-K, in ascending order.

    Raises:
        Missing: it is not installed, or the scores are not on a CUDA device.
    """
    if x.scores.device.type != "cuda":
        raise Missing("FlashInfer's Top-K needs a CUDA device")
    try:
        flashinfer = importlib.import_module("flashinfer")
    except ImportError as error:
        raise Missing(f"FlashInfer cannot be imported: {error}") from None
    return (flashinfer.top_k(x.scores[None], _k(x))[1][0].sort().values,)


def _compiled(function: Callable[..., Tensor]) -> Forward:
    compiled = torch.compile(function, dynamic=False)

    def forward(x: Inputs, kept: Tensor) -> tuple[Tensor, ...]:
        try:
            return (compiled(x.tokens, *x.weights),)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise Missing(f"torch.compile: {str(error).partition(chr(10))[0]}") from None

    return forward


def _straight_through_mask(x: Inputs, kept: Tensor) -> tuple[Tensor, ...]:
    hard = published.topk_mask(x.scores.detach(), _k(x))
    factors = hard + DROPPED_SCALE * (1 - hard)
    probs = ops_eager.soft_topk(x.scores, _k(x), TEMPERATURE)
    soft = (probs - probs.detach())[:, None] * x.tokens.detach()
    return ((x.tokens * factors[:, None] + soft).to(x.tokens.dtype),)


def _soft_with_loss(x: Inputs, kept: Tensor) -> tuple[Tensor, ...]:
    probs = published.soft_topk(x.scores, _k(x), TEMPERATURE)
    return probs, published.topk_consistency_loss(probs, x.scores.detach(), _k(x))


def operators(compiled: bool) -> dict[str, Operator]:
    """All operators; with ``compiled`` also what torch.compile makes of the formulas."""
    scorers: dict[str, Forward] = {
        "published": lambda x, kept: (published.importance_scores(x.tokens, *x.weights),),
        "collapsed, eager": lambda x, kept: (ops_eager.collapsed_scores(x.tokens, *x.weights),),
    }
    if compiled:
        scorers["published, compiled"] = _compiled(published.importance_scores)
        scorers["collapsed, compiled"] = _compiled(ops_eager.collapsed_scores_by_sums)
    weights = ("q_weight", "q_bias", "k_weight", "k_bias")
    return {
        "importance_scores": Operator(
            lambda ops, x, kept: (ops.importance_scores(x.tokens, *x.weights, x.plan),), weights, scorers
        ),
        "topk_indices": Operator(
            lambda ops, x, kept: (ops.topk_indices(x.scores, x.plan),), (),
            {
                "topk + sort": lambda x, kept: (published.topk_indices(x.scores, _k(x)),),
                "FlashInfer": flashinfer_indices,
            },
        ),
        "topk_mask": Operator(
            lambda ops, x, kept: (ops.topk_mask(x.scores, x.plan),), (),
            {"topk + scatter": lambda x, kept: (published.topk_mask(x.scores, _k(x)).bool(),)},
        ),
        "soft_topk": Operator(
            lambda ops, x, kept: ops.soft_topk(x.scores, x.plan, TEMPERATURE)[:1], ("scores",),
            {"64 bisections": lambda x, kept: (ops_eager.soft_topk(x.scores, _k(x), TEMPERATURE),)},
        ),
        "soft_topk_with_loss": Operator(
            lambda ops, x, kept: ops.soft_topk_with_loss(x.scores, x.plan, TEMPERATURE)[::2], ("scores",),
            {"published": _soft_with_loss},
        ),
        "topk_consistency_loss": Operator(
            lambda ops, x, kept: (ops.topk_consistency_loss(x.scores, x.plan, TEMPERATURE),), ("scores",),
            {"published": lambda x, kept: _soft_with_loss(x, kept)[1:]},
        ),
        "gather_tokens": Operator(
            lambda ops, x, kept: (ops.gather_tokens(x.tokens, kept),), ("tokens",),
            {"index_select": lambda x, kept: (x.tokens.index_select(0, kept),)},
        ),
        "straight_through_gather": Operator(
            lambda ops, x, kept: ops.straight_through_gather(x.tokens, x.scores, x.plan, TEMPERATURE)[:1],
            ("tokens", "scores"),
            {"composed": lambda x, kept: (ops_eager.straight_through_gather(x.tokens, x.scores, _k(x), TEMPERATURE),)},
        ),
        "straight_through_mask": Operator(
            lambda ops, x, kept: (
                ops.straight_through_mask(x.tokens, x.scores, x.plan, TEMPERATURE, dropped_scale=DROPPED_SCALE),
            ),
            ("tokens", "scores"),
            {"composed": _straight_through_mask},
        ),
        "select_tokens": Operator(
            lambda ops, x, kept: ops.select_tokens(x.tokens, *x.weights, x.plan)[2:3], (),
            {"published": lambda x, kept: published.select_tokens(x.tokens, *x.weights, _k(x))[2:3]},
        ),
    }  # fmt: skip
