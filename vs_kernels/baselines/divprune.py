"""DivPrune: the most diverse tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_kernels.baselines.interface import Greedy

BLOCK = 1024


class DivPrune(Greedy):
    """Greedy max-min diversity in cosine distance (Alvar et al., arXiv 2503.02175).

    The first token is the one whose nearest neighbour is farthest, each next one the farthest from those taken.
    """

    def take(self, tokens: Tensor, k: int) -> Tensor:
        units = F.normalize(tokens.float(), dim=1)
        taken = torch.empty(k, dtype=torch.int64, device=tokens.device)
        taken[0] = _nearest_similarity(units).argmin()
        nearest = torch.full((len(tokens),), -torch.inf, device=tokens.device)
        for step in range(1, k):
            last = taken[step - 1 : step]
            nearest = torch.maximum(nearest, units @ units[last].squeeze(0))
            nearest.index_fill_(0, last, torch.inf)
            taken[step] = nearest.argmin()
        return taken


def _nearest_similarity(units: Tensor) -> Tensor:
    """float32 [N], cosine of every token with its nearest neighbour, in blocks of rows."""
    nearest = []
    for start in range(0, len(units), BLOCK):
        similarity = units[start : start + BLOCK] @ units.T
        similarity.diagonal(start).fill_(-torch.inf)
        nearest.append(similarity.amax(1))
    return torch.cat(nearest)
