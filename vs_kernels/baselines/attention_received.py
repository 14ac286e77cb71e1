"""Attention received in the vision encoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from vs_kernels.baselines.interface import Baseline
from vs_kernels.plan import SelectionPlan

BLOCK = 1024


def attention_received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean attention that every token receives, over heads and over the tokens that attend.

    Computed in blocks of queries, so that no N x N matrix is held.

    Args:
        query: [H, M, d], of the tokens that attend; a class token alone is M = 1.
        key: [H, N, d], of the tokens that are attended to; H may be a divisor of the query's heads.
        scale: factor of the products, usually d ** -0.5.

    Returns:
        float32 [N], which sums to 1.
    """
    key = key.float().repeat_interleave(len(query) // len(key), dim=0).transpose(1, 2)
    received = torch.zeros(key.shape[2], device=key.device)
    for block in query.float().split(max(1, BLOCK // len(query)), dim=1):
        received += (scale * block @ key).softmax(-1).sum((0, 1))
    return received / (query.shape[0] * query.shape[1])


class AttentionReceived(Baseline):
    """Tokens that the others attend to most in one layer of the vision encoder (VisionZip, arXiv 2412.04467, and,
    inside of the language model, FastV, arXiv 2403.06764).

    The tokens alone do not say what attention they received, so ``source`` does.

    Args:
        source: () -> float32 [T], what the tokens of the call received: ``EncoderAttention`` of
            ``vs_kernels.integrations.transformers``, or your own with :func:`attention_received`.
        budget, pool: see :class:`Baseline`.
    """

    def __init__(self, source: Callable[[], Tensor], budget: float = 0.2, pool: str = "image"):
        super().__init__(budget, pool)
        self.source = source

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        return self.source().to(tokens.device)
