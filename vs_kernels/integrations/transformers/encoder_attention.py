"""What visual tokens received of the attention of one layer of the vision encoder."""

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from vs_kernels.baselines import attention_received
from vs_kernels.integrations.transformers.families import family_of
from vs_kernels.integrations.transformers.families.llava import Llava
from vs_kernels.integrations.transformers.families.qwen_vl import QwenVL

WATCHED = "vs_kernels_watched"
BASE = "sdpa"
GRID = "grid_thw"


class EncoderAttention:
    """The source of :class:`vs_kernels.baselines.AttentionReceived` in a model.

    >>> source = EncoderAttention(model)
    >>> attach_selector(model, AttentionReceived(source, budget=0.2))

    It watches the layer whose output the language model reads, in blocks of queries: no N x N matrix is held, and no
    other layer computes more than before. That layer runs on sdpa from here on. Where the encoder has a class token
    whose features are not used, it is that token's attention, else the mean over all; where several patches are merged
    into a token, the mean over them.

    Args:
        model: of a Qwen, GLM-4V or LLaVA family; the encoders of the others pool patches in ways of their own.

    Raises:
        TypeError: a model of another family.
    """

    def __init__(self, model: PreTrainedModel):
        family = family_of(model)
        if isinstance(family, QwenVL):
            tower: Any = model.model.visual
            self._attention: Any = tower.blocks[-1].attn
            self._merged = tower.spatial_merge_size**2
            self._class_token = False
        elif type(family) is Llava and hasattr(model.config, "vision_feature_select_strategy"):
            tower = model.model.vision_tower
            layers = next(module for module in tower.modules() if isinstance(module, nn.ModuleList))
            self._attention = layers[model.config.vision_feature_layer].self_attn
            self._merged = 1
            self._class_token = model.config.vision_feature_select_strategy == "default"
        else:
            raise TypeError(f"model: got {type(model).__name__}, expected one of a Qwen, GLM-4V or LLaVA family")
        self._tower = tower
        self._calls: deque[tuple[Tensor | None, list[Tensor]]] = deque(maxlen=2)
        self._config = self._attention.config
        AttentionInterface.register(WATCHED, _attend)
        self._attention.config = copy.copy(self._config)
        self._attention.config._attn_implementation = WATCHED
        self._attention.vs_kernels_watch = self._note
        self._hook = tower.register_forward_pre_hook(self._start, with_kwargs=True)

    def __call__(self) -> Tensor:
        """float32 [T], of the tokens of the oldest call of the encoder that was not asked for, in prompt order.

        Raises:
            RuntimeError: the encoder did not run since.
        """
        if not self._calls:
            raise RuntimeError("the encoder did not run since the last call, or its attention is no longer watched")
        grid, pieces = self._calls.popleft()
        tokens = torch.cat(pieces).view(-1, self._merged).mean(1)
        window = getattr(self._tower, "window_size", None)
        return tokens if window is None or grid is None else tokens[_window_index(self._tower, grid).argsort()]

    def detach(self) -> None:
        """Let the encoder run as before."""
        self._hook.remove()
        self._attention.config = self._config
        del self._attention.vs_kernels_watch

    def _start(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((kwargs.get(GRID), []))

    @torch.no_grad()
    def _note(self, query: Tensor, key: Tensor, scale: float) -> None:
        for of_query, of_key in zip(query, key, strict=True):  # [H, N, d] of every image
            if self._class_token:
                self._calls[-1][1].append(attention_received(of_query[:, :1], of_key, scale)[1:])
            else:
                self._calls[-1][1].append(attention_received(of_query, of_key, scale))


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> Any:
    module.vs_kernels_watch(query, key, options["scaling"])
    return AttentionInterface()[BASE](module, query, key, value, attention_mask, **options)


def _window_index(tower: Any, grid: Tensor) -> Tensor:
    """int64 [T], the token that is at every place in the order of windows, in which the encoder works."""
    if hasattr(tower, "get_window_index"):
        return tower.get_window_index(grid)[0]
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)[0]
