"""A uniform grid: tokens at equal distances, whatever they show."""

import torch
from torch import Tensor

from vs_kernels.baselines.interface import Baseline
from vs_kernels.plan import SelectionPlan


class UniformGrid(Baseline):
    """The middles of k equal stretches of every pool, in raster order; spatial uniformity alone is a strong baseline
    (Wen et al., arXiv 2502.11501).

    Kept tokens score 1, the others 0.
    """

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        scores = torch.zeros(plan.total_tokens)
        for pool, n, k in zip(scores.split(plan.lengths), plan.lengths, plan.ks, strict=True):
            pool[[(2 * i + 1) * n // (2 * k) for i in range(k)]] = 1
        return scores.to(tokens.device, non_blocking=True)
