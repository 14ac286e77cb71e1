"""Token norm: the longest vectors."""

from torch import Tensor

from vs_kernels.baselines.interface import Baseline
from vs_kernels.plan import SelectionPlan


class TokenNorm(Baseline):
    """Tokens of the largest Euclidean norm; encoders give their outliers to background patches, so this is often
    worse than random (Darcet et al., arXiv 2309.16588)."""

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        return tokens.float().norm(dim=1)
