"""Signs of a healthy training: is the mask sharp, do soft and hard agree, does the gradient point at what matters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vs_kernels.ops.soft_topk import soft_topk
from vs_kernels.ops.topk_mask import topk_mask
from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection
from vs_kernels.training.module import Handle, SelectorTraining


@torch.no_grad()
def mask_health(selection: Selection, temperature: float = 1.0) -> dict[str, float]:
    """Numbers about the scores of one selection.

    - ``sharpness``: share of the soft Top-K's mass that lies on the hard Top-K, the budget where scores are flat, 1
      where the soft mask is the hard one;
    - ``score_spread``: standard deviation of the scores within a pool, the mean over the pools.
    """
    plan = selection.plan
    scores = selection.scores.detach().flatten()
    probs, _ = soft_topk(scores, plan, temperature)
    on_kept = (probs * topk_mask(scores, plan)).sum() / max(1, plan.total_kept)
    spreads = [pool.std(correction=0) for pool in scores.split(list(plan.lengths)) if len(pool)]
    return {"sharpness": on_kept.item(), "score_spread": torch.stack(spreads).mean().item() if spreads else 0.0}


@torch.no_grad()
def soft_hard_gap(training: SelectorTraining, batch: dict[str, Any]) -> dict[str, float]:
    """Answer losses of a batch with soft and with hard selection at the present scores, and hard less soft.

    A gap says that the model was taught with masks that inference does not have.
    """
    selector = training.selector
    mode, was_training = selector.train_mode, selector.training
    try:
        selector.train_mode = "soft"
        selector.train()
        soft = training(**batch)["answer_loss"].item()
        selector.eval()
        hard = training(**batch)["answer_loss"].item()
    finally:
        selector.train_mode = mode
        selector.train(was_training)
    return {"soft_answer_loss": soft, "hard_answer_loss": hard, "soft_hard_gap": hard - soft}


def credit_correlation(
    handle: Handle, batch: dict[str, Any], tokens: int = 8, scale: float | None = None, seed: int = 0
) -> float:
    """Correlation of what the straight-through gradient says kept tokens are worth with what they are worth.

    The worth of a token is measured: the answer loss of the batch without it, less the loss with it, the tokens at
    their full size. The gradient's word for it is ``-<grad_out_i, x_i>``, up to a factor, with the tokens at ``scale``.
    Near 1 the gradient can be trusted; near 0 another scale is called for.

    Args:
        handle: of a selector attached with ``train=True``.
        batch: arguments of the model, labels among them, with images or with videos.
        tokens: how many of the kept tokens to leave out, one forward each; drawn among all of them.
        scale: of the kept tokens; None: the selector's.
        seed: of the draw.

    Raises:
        ValueError: ``tokens`` is less than 3 or more than were kept, or the batch has several modalities.
    """
    selector, was_training = handle.selector, handle.selector.training
    scale = selector.scale if scale is None else scale
    try:
        selector.eval()
        with torch.no_grad():
            loss = handle.model(**batch).loss
        if len(handle.last_selection) != 1:
            raise ValueError(f"batch: got {sorted(handle.last_selection) or 'no visual tokens'}, expected one modality")
        (selection,) = handle.last_selection.values()
        plan, indices = selection.plan, selection.indices
        assert indices is not None
        if not 3 <= tokens <= len(indices):
            raise ValueError(f"tokens: got {tokens}, expected from 3 to {len(indices)}, the tokens that were kept")
        handle.selector = kept = _Kept(selector, plan, indices, scale)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(handle.model(**batch).loss, kept.rows)
        credit = (grad.float() * kept.rows.detach().float() / scale).sum(1)
        drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:tokens].tolist()
        worth = []
        for position in drawn:
            handle.selector = _Kept(selector, *_without(plan, indices, position))
            with torch.no_grad():
                worth.append(handle.model(**batch).loss - loss)
    finally:
        handle.selector = selector.train(was_training)
    pair = torch.stack([-credit[drawn].double(), torch.stack(worth).double()])
    return torch.corrcoef(pair)[0, 1].item()


class _Kept(nn.Module):
    """In the place of a selector: keeps the tokens that it is told to, as leaves of the graph."""

    def __init__(self, selector: Any, plan: SelectionPlan, indices: Tensor, scale: float = 1.0):
        super().__init__()
        self.budget, self.pool = selector.budget, selector.pool
        self.kept, self.indices, self.scale = plan, indices, scale

    def forward(
        self, tokens: Tensor, lengths: Sequence[int], budget: float | None = None, *, plan: Any = None
    ) -> Selection:
        if len(tokens) != self.kept.total_tokens:
            raise ValueError(f"batch: got {len(tokens)} tokens to choose among, expected {self.kept.total_tokens}, all")
        self.rows = (tokens.detach().index_select(0, self.indices) * self.scale).requires_grad_()
        return Selection(self.rows, self.indices, tokens.new_zeros(len(tokens)), None, None, self.kept)


def _without(plan: SelectionPlan, indices: Tensor, position: int) -> tuple[SelectionPlan, Tensor]:
    """A plan and indices that keep one token less, the one at ``position`` of the kept ones."""
    pool = int(torch.searchsorted(plan.cu_ks(), position, right=True)) - 1
    ks = [k - (index == pool) for index, k in enumerate(plan.ks)]
    return SelectionPlan(plan.lengths, ks), torch.cat([indices[:position], indices[position + 1 :]])
