"""SelectorTraining: a model with an attached selector as one module whose only parameters to learn are the scorer's."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vs_kernels.selection import Selection
from vs_kernels.selector import VisionTokenSelector
from vs_kernels.training.curriculum import Curriculum, Settings


class Handle(Protocol):
    """What an integration's ``attach_selector(..., train=True)`` returns."""

    model: Any
    selector: Any
    budget: float | None
    last_selection: dict[str, Selection]

    @property
    def loss(self) -> Tensor | None: ...

    def row_losses(self, output: Any, labels: Tensor) -> Tensor: ...

    def token_rows(self, inputs: dict[str, Any]) -> dict[str, Tensor]: ...


def score_function_loss(handle: Handle, noise: float, labels: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The mean answer loss of two noisy selections, with the gradient of the score-function estimator (REINFORCE).

    Two forwards and no backward through the model. Each draw is the baseline of the other: where one row of the batch
    was answered better, the tokens that only that draw kept go up, and those that only the other one kept go down, by
    half of the difference of the row's losses over the noise. (The score of a Gumbel Top-K draw is taken as its mask
    less the soft Top-K, over the noise; between two draws the soft one cancels.)
    """
    losses, draws = [], []
    for _ in range(2):
        output = handle.model(**inputs, labels=labels)
        losses.append(handle.row_losses(output, labels).detach())
        draws.append(handle.last_selection)
    advantage = (losses[0] - losses[1]) / (2 * noise * len(losses[0]))
    rows = handle.token_rows(inputs)
    surrogate = torch.zeros((), device=advantage.device)
    for modality, first in draws[0].items():
        only_first = _kept_mask(first) - _kept_mask(draws[1][modality])
        surrogate = surrogate + (first.scores.flatten() * only_first * advantage[rows[modality]]).sum()
    return torch.stack(losses).mean() + surrogate - surrogate.detach()


def _kept_mask(selection: Selection) -> Tensor:
    """float32 [T], 1 where a token was kept."""
    assert selection.indices is not None
    mask = selection.scores.new_zeros(selection.plan.total_tokens)
    return mask.index_fill_(0, selection.indices, 1.0)


class SelectorTraining(nn.Module):
    """The composite loss, answer loss + loss_weight * consistency loss, as the output of a module.

    Wrap this module, not the model, in DistributedDataParallel or fully_shard, and give it to transformers' Trainer.
    Its state_dict is the selector's alone, so that a checkpoint is a few megabytes whatever the model weighs.

    Args:
        handle: of a selector attached with ``train=True``.
        curriculum: of the training.
        rank: of this process; processes draw different noise.

    Raises:
        ValueError: a curriculum that ends without noise, for a selector in train mode ``"score_function"``.

    Attributes:
        settings: of the step that :meth:`start_step` began last.
        last_losses: of the last forward, detached.
    """

    accepts_loss_kwargs = False  # Trainer: divide the loss by the accumulation steps; both terms are means

    def __init__(self, handle: Handle, curriculum: Curriculum, rank: int = 0):
        super().__init__()
        if handle.selector.train_mode == "score_function" and not all(curriculum.at(step, 2).noise for step in (0, 1)):
            raise ValueError("noise: got a curriculum with 0 for train_mode 'score_function', expected numbers > 0")
        self.model = handle.model
        self.selector: VisionTokenSelector = handle.selector
        self.handle = handle
        self.curriculum = curriculum
        self.rank = rank
        self.last_losses: dict[str, Tensor] = {}
        self.settings = self.start_step(0, 1)

    def start_step(self, step: int, total_steps: int) -> Settings:
        """Apply the curriculum for an optimizer step, from 0; before its first forward, whatever it accumulates."""
        self.settings = self.curriculum.apply(self.selector, step, total_steps, self.rank)
        return self.settings

    def forward(self, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Losses of a batch, float32 scalars: ``loss``, ``answer_loss`` and, in training, ``consistency_loss``.

        In training the budget is the curriculum's, if it has one, and a batch of text alone has a consistency loss of 0
        and gradients of 0. In eval mode the selection is hard.
        """
        own_budget = self.handle.budget
        if self.training and self.settings.budget is not None:
            self.handle.budget = self.settings.budget
        try:
            if self.training and self.selector.train_mode == "score_function":
                answer_loss = score_function_loss(self.handle, self.settings.noise, labels, inputs)
            else:
                answer_loss = self.model(**inputs, labels=labels).loss
        finally:
            self.handle.budget = own_budget
        losses = {"loss": answer_loss, "answer_loss": answer_loss.detach()}
        if self.training:
            consistency = self.handle.loss
            if consistency is None:
                # Text alone. Without gradients of zero backward() would fail, and other processes would wait for them.
                consistency = 0.0 * torch.stack([parameter.sum() for parameter in self.selector.parameters()]).sum()
            losses["loss"] = answer_loss + self.settings.loss_weight * consistency
            losses["consistency_loss"] = consistency.detach()
        self.last_losses = {name: value.detach() for name, value in losses.items()}
        return losses

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.selector.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.selector.load_state_dict(state_dict, strict, assign)

    def gradient_checkpointing_enable(self, *arguments: Any, **options: Any) -> None:
        self.model.gradient_checkpointing_enable(*arguments, **options)

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing_disable()
