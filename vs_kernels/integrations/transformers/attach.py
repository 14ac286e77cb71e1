"""attach_selector: a transformers model that reads a budget of its visual tokens."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional
from transformers import PreTrainedModel

from vs_kernels.baselines import Baseline
from vs_kernels.integrations.transformers import calls
from vs_kernels.integrations.transformers.compact_prompt import CompactPrompt
from vs_kernels.integrations.transformers.families import family_of
from vs_kernels.integrations.transformers.prefill import IGNORED_LABEL, select_inputs
from vs_kernels.integrations.transformers.request import ItemSelection, SelectionRequest, per_item
from vs_kernels.plan import check_budget
from vs_kernels.selection import Selection
from vs_kernels.selector import VisionTokenSelector

OVERRIDES = {"forward": calls.forward, "generate": calls.generate}


def attach_selector(
    model: PreTrainedModel,
    selector: VisionTokenSelector | Baseline,
    budget: float | None = None,
    *,
    train: bool = False,
) -> "SelectorHandle":
    """Let ``model`` select its visual tokens before its language model reads them.

    From here on ``model(...)`` and ``model.generate(...)`` with pixels encode them, select, and run the language
    model on a shorter prompt, in which every token has the position that it has in the full one. Calls without
    pixels are untouched. Only ``forward`` and ``generate`` of this one model object are overridden.

    - ``generate`` takes and returns full prompts: its sequences begin with them, ``max_length`` counts them.
    - ``forward`` takes full prompts, with ``labels`` or without, and returns logits of the shorter ones, padded on
      the left; ``handle.last_prompt.columns`` says which columns of the full prompt they are. Decoding steps on its
      cache go on as if it held the full prompt: they take the attention mask of the full prompt and all tokens
      after it, or none.
    - Both take ``budget``, ``minimum``, ``scores`` and ``return_selection`` besides, for one call; docs/adapters.md.
    - ``mm_token_type_ids`` may be left out; ``attention_mask`` None means that nothing is padding. Nothing is selected
      from ``mm_encoder_outputs``, features of the caller.
    - ``selector.train()`` makes the selection differentiable, as its ``train_mode`` says. ``handle.loss`` is not
      added to the loss of the model.

    Args:
        model: for conditional generation, of a family that docs/adapters.md lists or :func:`register_family` adds.
        selector: a trained selector, or one of ``vs_kernels.baselines``; is moved to the device of the model, and does
            not become a part of it.
        budget: retention budget in (0, 1]; None: the selector's own.
        train: freeze the model and put the selector in train mode, for :class:`vs_kernels.training.SelectorTraining`;
            detaching thaws what it froze.

    Returns:
        A handle. ``handle.detach()``, or the end of a ``with`` block over it, restores the model.

    Raises:
        TypeError: a model of another class; the message lists those supported. Or a baseline to train.
        ValueError: the scorer reads tokens of another width, the budget is outside (0, 1], or the model has a
            selector already.
    """
    family = family_of(model)
    if _handle_of(model) is not None:
        raise ValueError("model: got one with a selector attached, expected one without; detach that one first")
    if isinstance(selector, VisionTokenSelector) and selector.scorer.in_features != family.hidden_size:
        raise ValueError(
            f"selector: got a scorer of tokens with {selector.scorer.in_features} features, expected "
            f"{family.hidden_size}, the hidden size of the language model"
        )
    if budget is not None:
        check_budget(budget)
    if train and not isinstance(selector, VisionTokenSelector):
        raise TypeError(f"selector: got {type(selector).__name__} to train, expected a VisionTokenSelector")
    handle = SelectorHandle(model, selector.to(model.device), budget)
    if train:
        handle.freeze()
        selector.train()
    return handle


class SelectorHandle:
    """A selector at work in a model; :func:`attach_selector` makes it.

    Attributes:
        model, selector: as given.
        budget: retention budget in (0, 1] of the next calls; None: the selector's own.
        last_selection: what the last prefill selected, by modality, ``"image"`` and ``"video"``; empty after one
            without pixels. In training it holds the graph until the next prefill.
        last_prompt: the compact prompt of the last prefill; None after one that dropped nothing.
        family: how the model encodes, marks and places visual tokens.
        model_forward, model_generate: the methods that are overridden.
    """

    def __init__(self, model: PreTrainedModel, selector: VisionTokenSelector | Baseline, budget: float | None):
        self.model = model
        self.selector = selector
        self.budget = budget
        self.last_selection: dict[str, Selection] = {}
        self.last_prompt: CompactPrompt | None = None
        self._lengths: dict[str, list[int]] = {}
        originals = {name: getattr(model, name) for name in OVERRIDES}
        self.model_forward: Callable[..., Any] = originals["forward"]
        self.model_generate: Callable[..., Any] = originals["generate"]
        self.family = family_of(model)
        self._rope_deltas = self.family.rope_deltas
        self._frozen: list[Parameter] = []
        # Other tools, such as accelerate, also put a forward on the instance.
        self._replaced = {name: vars(model)[name] for name in OVERRIDES if name in vars(model)}
        # Partials of the handle, unlike closures, follow the model through copy.deepcopy.
        for name, call in OVERRIDES.items():
            setattr(model, name, functools.update_wrapper(functools.partial(call, self), originals[name]))

    def __enter__(self) -> "SelectorHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model is not the one that ran, and graphs cannot be copied.
        return vars(self) | {"last_selection": {}, "last_prompt": None}

    @property
    def loss(self) -> Tensor | None:
        """Sum of the selection losses of the last prefill, a scalar; None outside training and without pixels."""
        losses = [selection.loss for selection in self.last_selection.values() if selection.loss is not None]
        return torch.stack(losses).sum() if losses else None

    def row_losses(self, output: Any, labels: Tensor) -> Tensor:
        """float32 [B], the mean cross-entropy of every row's labels, from the ``output`` of the last prefill.

        Args:
            labels: int64 [B, L], of the full prompt.
        """
        if self.last_prompt is not None:
            labels = self.last_prompt.take(labels, IGNORED_LABEL)
        logits, targets = output.logits[:, :-1].float(), labels[:, 1:]
        by_token = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return by_token.sum(1) / (targets != IGNORED_LABEL).sum(1).clamp(min=1)

    def token_rows(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """int64 [T] by modality, the row of the prompt that each visual token stands in."""
        return {
            modality: (inputs["input_ids"] == placeholder).nonzero()[:, 0]
            for modality, placeholder in self.family.placeholders.items()
        }

    def freeze(self) -> None:
        """Stop the gradients of the model's own parameters until :meth:`detach`."""
        self._frozen = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)

    def detach(self) -> None:
        """Restore the model as it was; a second time does nothing."""
        if _handle_of(self.model) is not self:
            return
        for name in OVERRIDES:
            delattr(self.model, name)
        for name, method in self._replaced.items():
            setattr(self.model, name, method)
        self.family.rope_deltas = self._rope_deltas
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def selects_from(self, inputs: dict[str, Any]) -> bool:
        """Whether arguments of ``forward`` have pixels."""
        return any(inputs.get(name) is not None for name in self.family.pixels.values())

    def select(self, inputs: dict[str, Any], request: SelectionRequest) -> dict[str, Any]:
        """Arguments of ``forward`` after selection, from arguments with pixels; notes what was selected."""
        inputs, self.last_selection, self._lengths, self.last_prompt = select_inputs(
            self.family, self.selector, request, inputs
        )
        return inputs

    def pack(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of ``forward`` with features in the containers that the model reads."""
        features = inputs.get("mm_encoder_outputs")
        if not isinstance(features, dict):
            return inputs
        packed = {modality: self.family.pack(modality, output) for modality, output in features.items()}
        return inputs | {"mm_encoder_outputs": packed}

    def selected(self) -> dict[str, list[ItemSelection]]:
        """What the last prefill kept of every image, tile or video, by modality; empty after one without pixels."""
        return {name: per_item(selection, self._lengths[name]) for name, selection in self.last_selection.items()}

    def forget(self) -> None:
        """Note that the last prefill had nothing to select from."""
        self.last_selection, self._lengths, self.last_prompt = {}, {}, None


def _handle_of(model: PreTrainedModel) -> SelectorHandle | None:
    generate = vars(model).get("generate")
    if isinstance(generate, functools.partial) and generate.func is calls.generate:
        return generate.args[0]
    return None
