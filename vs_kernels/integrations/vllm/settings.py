"""The setting: which selector, which budget. Checked where the server starts."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from vs_kernels.baselines import Baseline
from vs_kernels.evaluation.selectors import selector_named
from vs_kernels.plan import check_budget
from vs_kernels.selector import VisionTokenSelector

SETTING = "vs_kernels"


class ServingSettings(NamedTuple):
    """What ``--additional-config '{"vs_kernels": {...}}'`` says.

    Attributes:
        selector: directory, file or hub id of a trained selector or of a checkpoint with a scorer, or a baseline:
            random, uniform_grid, token_norm, divprune, dart.
        budget: retention budget in (0, 1] of requests that bring none of their own.
        digest: of the scorer's weights; tokens that another scorer chose never share a cache entry.
    """

    selector: str
    budget: float
    digest: str = ""

    @classmethod
    def of(cls, given: Any, model: str, hidden_size: int) -> "ServingSettings":
        """The checked settings.

        Args:
            given: the value of ``vs_kernels`` in the additional config.
            model: directory or hub id of the model, where the scorer is looked for if no selector is named.
            hidden_size: of the language model, the width of its visual tokens.

        Raises:
            TypeError, ValueError, FileNotFoundError: the message names the setting, what came, what was expected.
        """
        known = ("selector", "budget")
        if not isinstance(given, Mapping):
            raise TypeError(f"{SETTING}: got {given!r}, expected an object with the keys {list(known)}")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"{SETTING}: got the keys {unknown}, expected {list(known)}")
        name = given.get("selector", model)
        if not isinstance(name, str):
            raise TypeError(f"{SETTING}.selector: got {type(name).__name__}, expected a path, a hub id or a name")
        try:
            selector = selector_named(name) if name != model else VisionTokenSelector.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise type(error)(f"{SETTING}.selector: {error}") from error
        budget = given.get("budget", selector.budget)
        try:
            check_budget(budget)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{SETTING}.{error}") from None
        if isinstance(selector, VisionTokenSelector) and selector.scorer.in_features != hidden_size:
            raise ValueError(
                f"{SETTING}.selector: got a scorer of tokens with {selector.scorer.in_features} features, expected "
                f"{hidden_size}, the hidden size of the language model"
            )
        return cls(name, float(budget), _digest(selector))

    def load(self) -> VisionTokenSelector | Baseline:
        """The selector in eval mode on the CPU; every image and every video is a pool of its own."""
        return selector_named(self.selector)


def request_budget(options: Mapping[str, object], settings: ServingSettings) -> tuple[float, dict[str, object]]:
    """The budget of a request and its other options, from its ``mm_processor_kwargs``.

    Raises:
        TypeError, ValueError: a budget that is none.
    """
    others = dict(options)
    budget: Any = others.pop("budget", settings.budget)
    check_budget(budget)
    return float(budget), others


def _digest(selector: VisionTokenSelector | Baseline) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(selector.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
