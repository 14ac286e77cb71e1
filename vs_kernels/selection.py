"""Selection: what a selector chose."""

from typing import NamedTuple

from torch import Tensor

from vs_kernels.plan import SelectionPlan


class Selection(NamedTuple):
    """The outcome of one selection.

    Attributes:
        tokens: kept rows [K, D]; in the train modes that drop nothing, all rows in the shape of the input.
        indices: int64 [K], rows of the packed tokens that were kept, ascending; None where nothing was dropped.
        scores: float32 importance of every token, the shape of the input without D.
        probs: float32 soft Top-K probabilities, the shape of ``scores``; None outside soft training.
        loss: float32 scalar, consistency of the soft Top-K with its hard mask; None outside training.
        plan: pools and how many tokens each keeps.
    """

    tokens: Tensor
    indices: Tensor | None
    scores: Tensor
    probs: Tensor | None
    loss: Tensor | None
    plan: SelectionPlan
