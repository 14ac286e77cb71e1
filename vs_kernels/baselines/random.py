"""Random tokens: the floor that every method has to beat."""

import torch
from torch import Tensor

from vs_kernels.baselines.interface import Baseline
from vs_kernels.plan import SelectionPlan


class Random(Baseline):
    """Uniformly random tokens, which many methods fail to beat (Wen et al., arXiv 2502.11501).

    Args:
        budget, pool: see :class:`Baseline`.
        seed: of the draws, which go on from call to call and are the same on every device.
    """

    def __init__(self, budget: float = 0.2, pool: str = "image", seed: int = 0):
        super().__init__(budget, pool)
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        return torch.rand(len(tokens), generator=self.generator).to(tokens.device, non_blocking=True)
