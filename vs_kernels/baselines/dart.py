"""DART: tokens that duplicate a few pivots least."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_kernels.baselines.interface import Greedy
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.plan import SelectionPlan


class Dart(Greedy):
    """A few pivots, and around each an equal share of the tokens least similar to it (Wen et al., arXiv 2502.11494).

    The paper takes pivots by the norms of keys inside of the language model, from image and text; behind the encoder
    there are only visual tokens, so here the pivots are those of the largest L1 norm.

    Args:
        budget, pool: see :class:`Baseline`.
        pivots: how many, at most k.
    """

    def __init__(self, budget: float = 0.2, pool: str = "image", pivots: int = 4):
        super().__init__(budget, pool)
        if isinstance(pivots, bool) or not isinstance(pivots, int) or pivots < 1:
            raise ValueError(f"pivots: got {pivots!r}, expected an integer >= 1")
        self.pivots = pivots

    def take(self, tokens: Tensor, k: int) -> Tensor:
        units, count = F.normalize(tokens.float(), dim=1), min(self.pivots, k)
        pivots = _largest(tokens.float().abs().sum(1), count)
        taken = [pivots]
        free = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device).index_fill_(0, pivots, False)
        for i in range(count):
            share = (k - count) // count + (i < (k - count) % count)
            duplication = units @ units[pivots[i : i + 1]].squeeze(0)
            taken.append(_largest((-duplication).masked_fill(~free, -torch.inf), share))
            free.index_fill_(0, taken[-1], False)
        return torch.cat(taken)


def _largest(scores: Tensor, k: int) -> Tensor:
    return topk_indices(scores, SelectionPlan([len(scores)], [k]))
