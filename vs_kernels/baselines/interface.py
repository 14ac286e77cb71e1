"""What all baselines share: a budget, pools, and a score for every token."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vs_kernels.ops.gather_tokens import gather_tokens
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.plan import SelectionPlan, check_budget
from vs_kernels.selection import Selection
from vs_kernels.selector import POOLS

Score = Callable[[Tensor, SelectionPlan], Tensor]


def select_by_scores(tokens: Tensor, scores: Tensor, plan: SelectionPlan) -> Selection:
    """The k tokens of the largest scores of every pool; tokens [T, D], float32 scores [T]."""
    indices = topk_indices(scores, plan)
    return Selection(gather_tokens(tokens, indices), indices, scores, None, None, plan)


class Baseline(nn.Module):
    """A selector without training: a subclass says what a token scores.

    Args:
        budget: retention budget, the share of tokens kept, in (0, 1].
        pool: ``"image"``: every image has its own budget; ``"call"``: all images of a call share one.

    Raises:
        ValueError: an unknown pool, a budget outside (0, 1].
    """

    def __init__(self, budget: float = 0.2, pool: str = "image"):
        super().__init__()
        check_budget(budget)
        if pool not in POOLS:
            raise ValueError(f"pool: got {pool!r}, expected one of {POOLS}")
        self.budget = budget
        self.pool = pool

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        """float32 [T], of packed tokens [T, D]: the largest of every pool are kept."""
        raise NotImplementedError

    def select(self, tokens: Tensor, plan: SelectionPlan) -> Selection:
        """The selection among packed tokens [T, D]."""
        with torch.no_grad():
            scores = self.score(tokens.detach(), plan)
        return select_by_scores(tokens, scores, plan)

    def plan(self, lengths: Sequence[int], budget: float | Sequence[float] | None = None) -> SelectionPlan:
        """The plan for images of ``lengths`` tokens: one pool each, or one of all, as ``pool`` says."""
        shares = self.budget if budget is None else budget
        shares = shares if isinstance(shares, (int, float)) else list(shares)
        return SelectionPlan.from_budget([sum(lengths)] if self.pool == "call" else lengths, shares)

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int] | None = None,
        budget: float | Sequence[float] | None = None,
        *,
        plan: SelectionPlan | None = None,
    ) -> Selection:
        """Select among the tokens of one or several images; arguments as those of :class:`VisionTokenSelector`."""
        if not isinstance(tokens, Tensor) or tokens.dim() not in (2, 3):
            got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens: got {got}, expected a tensor [T, D] or [B, N, D]")
        if tokens.dim() == 3 and lengths is not None:
            raise ValueError("lengths: got it with dense tokens [B, N, D], expected it only with packed tokens [T, D]")
        if lengths is None:
            lengths = [tokens.shape[0]] if tokens.dim() == 2 else [tokens.shape[1]] * tokens.shape[0]
        if sum(lengths) != (rows := tokens.flatten(0, -2)).shape[0]:
            raise ValueError(f"tokens: got {rows.shape[0]} rows, expected {sum(lengths)}, the sum of lengths")
        selection = self.select(rows, self.plan(lengths, budget) if plan is None else plan)
        return selection._replace(scores=selection.scores.view(tokens.shape[:-1]))

    def extra_repr(self) -> str:
        return f"budget={self.budget}, pool={self.pool!r}"


class ByScore(Baseline):
    """Keeps the largest of scores that the caller computes, by any method.

    Args:
        function: (tokens [T, D], plan) -> float32 [T], such as an :class:`ImportanceScorer`.
        budget, pool: see :class:`Baseline`.
    """

    def __init__(self, function: Score, budget: float = 0.2, pool: str = "image"):
        super().__init__(budget, pool)
        self.function = function

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        return self.function(tokens, plan)


class Greedy(Baseline):
    """A baseline that takes one token after another.

    The score of a token says when it was taken: k for the first of a pool, 1 for the last, 0 for a dropped one. Where
    all tokens of a pool stay, nothing is compared and all score 1.
    """

    def take(self, tokens: Tensor, k: int) -> Tensor:
        """int64 [k], rows of the tokens [N, D] of one pool in the order in which they are taken; 0 < k < N."""
        raise NotImplementedError

    def score(self, tokens: Tensor, plan: SelectionPlan) -> Tensor:
        scores = torch.zeros(len(tokens), device=tokens.device)
        for pool, pool_scores, k in zip(tokens.split(plan.lengths), scores.split(plan.lengths), plan.ks, strict=True):
            if k == len(pool):
                pool_scores.fill_(1)
            elif k > 0:
                pool_scores[self.take(pool, k)] = torch.arange(k, 0, -1.0, device=tokens.device)
        return scores
