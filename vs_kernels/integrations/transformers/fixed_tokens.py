"""Visual tokens that mark the layout, such as the ends of rows: they stay, and do not compete."""

import torch
from torch import Tensor

from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection


class FixedTokens:
    """Which packed tokens [T, D] always stay.

    Args:
        lengths: tokens of every image or video.
        counts: how many of them always stay.
        mask: bool [T].

    Attributes:
        free_lengths: tokens of every image or video that compete.
        free, fixed: int64, the packed rows that compete and that always stay, ascending.
    """

    def __init__(self, lengths: list[int], counts: list[int], mask: Tensor):
        self.lengths = lengths
        self.counts = counts
        self.free_lengths = [length - count for length, count in zip(lengths, counts, strict=True)]
        order = mask.byte().argsort(stable=True)
        self.free, self.fixed = order.split([sum(self.free_lengths), sum(counts)])

    @classmethod
    def of(cls, tokens: Tensor, lengths: list[int], mask: Tensor | None) -> "FixedTokens | None":
        """From a mask, bool [T]; None where it is None or holds none. Waits for the device to learn the counts."""
        if mask is None:
            return None
        counts = torch.stack([item.sum() for item in mask.split(lengths)]).tolist()
        return cls(lengths, counts, mask) if any(counts) else None

    def join(self, selection: Selection, tokens: Tensor) -> Selection:
        """A selection among all tokens [T, D], from one among those that compete; fixed tokens score +Inf."""
        plan = self._plan(selection.plan)
        scores = self._spread(selection.scores, torch.inf)
        probs = None if selection.probs is None else self._spread(selection.probs, 1.0)
        if selection.indices is None:
            all_tokens = tokens.index_copy(0, self.free, selection.tokens)
            return Selection(all_tokens, None, scores, probs, selection.loss, plan)
        indices, order = torch.cat([self.free[selection.indices], self.fixed]).sort()
        kept = torch.cat([selection.tokens, tokens[self.fixed]])[order]
        return Selection(kept, indices, scores, probs, selection.loss, plan)

    def _plan(self, plan: SelectionPlan) -> SelectionPlan:
        if plan.lengths == tuple(self.free_lengths):
            ks = [k + count for k, count in zip(plan.ks, self.counts, strict=True)]
            return SelectionPlan(self.lengths, ks)
        return SelectionPlan([sum(self.lengths)], [plan.total_kept + sum(self.counts)])

    def _spread(self, values: Tensor, fixed: float) -> Tensor:
        """[T] from values [F] of the tokens that compete."""
        everything = values.new_full((len(self.free) + len(self.fixed),), fixed)
        return everything.index_copy(0, self.free, values)
