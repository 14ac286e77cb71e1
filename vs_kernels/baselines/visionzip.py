"""VisionZip: dominant tokens, and contextual ones that stand for the rest."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vs_kernels.baselines.interface import Baseline, Score
from vs_kernels.ops.gather_tokens import gather_tokens
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection

BLOCK = 1024


class VisionZip(Baseline):
    """Dominant tokens by attention received, contextual ones spread over the rest (Yang et al., arXiv 2412.04467).

    Of k tokens, 10 in 64 are contextual, at equal steps in the order of the tokens that are not dominant. With
    ``merge`` every other token is averaged into the contextual one that it is most similar to, so that the kept rows
    are not all rows of the input. The paper compares keys of the encoder; behind the encoder this compares tokens.

    Args:
        dominance: (tokens [T, D], plan) -> float32 [T]; ``AttentionReceived(source).score`` is the paper's.
        budget, pool: see :class:`Baseline`.
        merge: average the dropped tokens into the contextual ones.
    """

    def __init__(self, dominance: Score, budget: float = 0.2, pool: str = "image", merge: bool = True):
        super().__init__(budget, pool)
        self.dominance = dominance
        self.merge = merge

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        return self.dominance(tokens, plan)

    def select(self, tokens: Tensor, plan: SelectionPlan) -> Selection:
        with torch.no_grad():
            scores = self.score(tokens.detach(), plan)
        counts = [round(k * 10 / 64) if k < length else 0 for length, k in zip(plan.lengths, plan.ks, strict=True)]
        dominant_plan = SelectionPlan(plan.lengths, [k - m for k, m in zip(plan.ks, counts, strict=True)])
        dominant = torch.zeros_like(scores, dtype=torch.bool)
        dominant.index_fill_(0, topk_indices(scores, dominant_plan), True)

        kept_rows, kept_indices, start = [], [], 0
        for pool, kept, k, count in zip(
            tokens.split(plan.lengths), dominant.split(plan.lengths), plan.ks, counts, strict=True
        ):
            # Dropped tokens first, in order; their number is known without a wait for the device.
            order = kept.byte().argsort(stable=True)
            rest, dominant_rows = order[: len(pool) - k + count], order[len(pool) - k + count :]
            targets = rest[:: max(1, len(rest) // max(1, count))][:count]
            indices, slots = torch.cat([dominant_rows, targets]).sort()
            rows = gather_tokens(pool, indices)
            if self.merge and count:
                merged = _average_into(pool, targets, rest)
                rows = rows.index_copy(0, slots.argsort()[len(dominant_rows) :], merged)
            kept_rows.append(rows)
            kept_indices.append(indices + start)
            start += len(pool)
        empty = tokens[:0], torch.empty(0, dtype=torch.int64, device=tokens.device)
        return Selection(
            torch.cat([empty[0], *kept_rows]), torch.cat([empty[1], *kept_indices]), scores, None, None, plan
        )


def _average_into(pool: Tensor, targets: Tensor, rest: Tensor) -> Tensor:
    """[m, D] in the dtype of the pool: means of the rows ``rest``, each with the target most similar to it."""
    units = F.normalize(pool.detach().float(), dim=1)
    nearest = torch.cat([(units[block] @ units[targets].T).argmax(1) for block in rest.split(BLOCK)])
    # A target belongs to itself, also where a twin of it is a target before it.
    own = torch.empty(len(pool), dtype=torch.int64, device=pool.device)
    own[rest] = nearest
    own[targets] = torch.arange(len(targets), device=pool.device)
    sums = torch.zeros(len(targets), pool.shape[1], device=pool.device).index_add(0, own[rest], pool[rest].float())
    sizes = torch.zeros(len(targets), device=pool.device).index_add(
        0, own[rest], torch.ones_like(rest, dtype=sums.dtype)
    )
    return (sums / sizes[:, None]).to(pool.dtype)
