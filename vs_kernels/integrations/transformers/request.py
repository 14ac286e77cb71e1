"""What a call asks of the selection: arguments of ``model(...)`` and ``model.generate(...)`` beyond the model's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vs_kernels.baselines import Baseline
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.plan import SelectionPlan, check_budget
from vs_kernels.selection import Selection
from vs_kernels.selector import VisionTokenSelector

Budget = float | Sequence[float] | Mapping[str, Sequence[float]]


class ItemSelection(NamedTuple):
    """What was selected in one image, tile or video.

    Attributes:
        indices: int64 [k], its kept tokens, ascending.
        scores: float32 [N], of all its tokens; +Inf where a token always stays.
    """

    indices: Tensor
    scores: Tensor


class SelectionRequest(NamedTuple):
    """Arguments of one call.

    Attributes:
        budget: one number; one for every row of the batch; or, by modality, one for every image, tile or video.
            None: the selector's own.
        minimum: tokens that every image, tile or video keeps at least.
        scores: by modality, float32 [T] or one [N] for every image, tile or video, in place of the selector's.
        return_selection: whether the call returns what was selected, too.
    """

    budget: Budget | None = None
    minimum: int = 1
    scores: Mapping[str, Tensor | Sequence[Tensor]] | None = None
    return_selection: bool = False

    @classmethod
    def take_from(cls, inputs: dict[str, Any], budget: float | None) -> "SelectionRequest":
        """The request in the arguments of a call, which are removed there; ``budget`` serves where none is given."""
        given = {name: inputs.pop(name) for name in cls._fields if name in inputs}
        if given.get("budget") is None:
            given["budget"] = budget
        return cls(**given)

    def plan(
        self,
        selector: VisionTokenSelector | Baseline,
        modality: str,
        lengths: list[int],
        rows: Callable[[], list[int]],
    ) -> SelectionPlan:
        """The plan for images of ``lengths`` tokens, which are in ``rows`` of the batch.

        Raises:
            ValueError: a budget outside of (0, 1], or not as many as there are rows or images.
        """
        budget: Any = self.budget
        if isinstance(budget, Mapping):
            if modality not in budget:
                raise ValueError(f"budget: got it for {sorted(budget)}, expected it for {modality!r} too")
            budget = list(budget[modality])
            if len(budget) != len(lengths):
                raise ValueError(f"budget[{modality!r}]: got {len(budget)} entries, expected {len(lengths)}")
        elif isinstance(budget, Sequence) and not isinstance(budget, str):
            of_items = rows()
            if of_items and max(of_items) >= len(budget):
                raise ValueError(f"budget: got {len(budget)} entries, expected one for each row of the batch")
            budget = [budget[row] for row in of_items]
        if budget is None:
            budget = selector.budget
        if selector.pool == "call":
            if isinstance(budget, list):
                raise ValueError(
                    "budget: got several with pool='call', whose images share one, expected one or pool='image'"
                )
            lengths = [sum(lengths)]
        if not isinstance(budget, list):
            check_budget(budget)
        return SelectionPlan.from_budget(lengths, budget, minimum=self.minimum)

    def scores_of(self, modality: str, total: int) -> Tensor | None:
        """float32 [T], the scores that the caller gives.

        Raises:
            ValueError: not as many scores as tokens.
        """
        given = None if self.scores is None else self.scores.get(modality)
        if given is None:
            return None
        scores = given if isinstance(given, Tensor) else torch.cat(list(given))
        if scores.shape != (total,):
            raise ValueError(
                f"scores[{modality!r}]: got shape {tuple(scores.shape)}, expected ({total},), one for every token"
            )
        return scores


def per_item(selection: Selection, lengths: list[int]) -> list[ItemSelection]:
    """The selection, image by image; in train modes that drop nothing, of the hard Top-K."""
    scores = selection.scores.detach().flatten()
    indices = topk_indices(scores, selection.plan) if selection.indices is None else selection.indices
    bounds = SelectionPlan(lengths, lengths).cu_lengths(indices.device)
    counts = torch.searchsorted(indices, bounds).diff().tolist()
    return [
        ItemSelection(kept - start, of_item)
        for kept, start, of_item in zip(indices.split(counts), bounds[:-1], scores.split(lengths), strict=True)
    ]
