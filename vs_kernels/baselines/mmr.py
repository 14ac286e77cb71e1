"""MMR: relevance that makes room for what was not yet taken."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_kernels.baselines.interface import Baseline, Score
from vs_kernels.plan import SelectionPlan


class Mmr(Baseline):
    """Greedy re-ranking of relevance by maximal marginal relevance, on learned scores IDPruner (arXiv 2602.13315).

    The next token is the one of the largest ``balance * relevance - (1 - balance) * similarity``, with relevance scaled
    to [0, 1] in its pool and similarity the largest cosine with a token taken before. The score of a token says when
    it was taken: k for the first of a pool, 1 for the last, 0 for a dropped one.

    Args:
        relevance: (tokens [T, D], plan) -> float32 [T], such as the trained ``selector.scorer``.
        budget, pool: see :class:`Baseline`.
        balance: lambda of the paper, in [0, 1]; 1 is relevance alone.
    """

    def __init__(self, relevance: Score, budget: float = 0.2, pool: str = "image", balance: float = 0.5):
        super().__init__(budget, pool)
        if not 0 <= balance <= 1:
            raise ValueError(f"balance: got {balance!r}, expected a number in [0, 1]")
        self.relevance = relevance
        self.balance = balance

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        scores = torch.zeros(len(tokens), device=tokens.device)
        pools = (values.split(plan.lengths) for values in (tokens, self.relevance(tokens, plan), scores))
        for pool, relevance, pool_scores, k in zip(*pools, plan.ks, strict=True):
            if k > 0:
                self._rank(F.normalize(pool.float(), dim=1), relevance, pool_scores, k)
        return scores

    def _rank(self, units: Tensor, relevance: Tensor, scores: Tensor, k: int) -> None:
        low, high = relevance.aminmax()
        relevance = (relevance - low) / (high - low).clamp_min(torch.finfo(relevance.dtype).tiny)
        nearest, value = torch.full_like(relevance, -1.0), relevance
        for step in range(k):
            best = value.argmax().view(1)
            scores.index_fill_(0, best, k - step)
            nearest = torch.maximum(nearest, units @ units[best].squeeze(0))
            value = self.balance * relevance - (1 - self.balance) * nearest
            value.masked_fill_(scores > 0, -torch.inf)
