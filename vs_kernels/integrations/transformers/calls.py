"""The calls that a handle overrides: ``forward`` and ``generate`` of its model."""

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from vs_kernels.integrations.transformers.compact_prompt import CompactPrompt
from vs_kernels.integrations.transformers.request import SelectionRequest

if TYPE_CHECKING:
    from vs_kernels.integrations.transformers.attach import SelectorHandle

CACHE_NOTE = "_vs_kernels_compact_prompt"

# The argument that takes a cache, and the name that it has in other versions of transformers.
CACHE, OTHER_CACHE = ("cache", "past_key_values")[:: 1 if Version(transformers.__version__) >= Version("5.24") else -1]


def forward(handle: "SelectorHandle", /, *args: Any, **kwargs: Any) -> Any:
    """``model.forward``: select in a prefill with pixels; let decoding steps after it speak of the full prompt."""
    inputs = _by_name(handle.model_forward, args, kwargs)
    request = SelectionRequest.take_from(inputs, handle.budget)
    cache = inputs.get(CACHE)
    if handle.selects_from(inputs):
        output = handle.model_forward(**handle.pack(handle.select(inputs, request)))
        values = output if isinstance(output, tuple) else output.to_tuple()
        _remember(next((value for value in values if isinstance(value, Cache)), None), handle.last_prompt)
    else:
        if cache is None and inputs.get("mm_encoder_outputs") is None:
            handle.forget()
        prompt = _recall(cache)
        if cache is not None and prompt is not None:
            inputs = prompt.decoding_inputs(inputs, int(cache.get_seq_length()))
        output = handle.model_forward(**handle.pack(inputs))
    return (output, handle.selected()) if request.return_selection else output


def generate(handle: "SelectorHandle", /, *args: Any, **kwargs: Any) -> Any:
    """``model.generate``: select once, generate from the compact prompt, return sequences with the full one."""
    inputs = _by_name(handle.model_generate, args, kwargs)
    request = SelectionRequest.take_from(inputs, handle.budget)
    result = _generate(handle, request, inputs)
    return (result, handle.selected()) if request.return_selection else result


def _generate(handle: "SelectorHandle", request: SelectionRequest, inputs: dict[str, Any]) -> Any:
    cache = inputs.get(CACHE)
    if _recall(cache) is not None:
        raise ValueError(
            "cache: got that of a prompt that lost visual tokens, expected an empty one; give the "
            "whole conversation with its pixels, or go on with forward()"
        )
    if not handle.selects_from(inputs):
        handle.forget()
        return handle.model_generate(**inputs)

    if inputs.get("inputs") is not None:
        inputs = dict(input_ids=inputs.pop("inputs"), **inputs)
    with torch.no_grad():
        selected = handle.select(inputs, request)
    prompt = handle.last_prompt
    if prompt is None:
        return handle.model_generate(**selected)
    full_ids = inputs["input_ids"]

    def restore(sequences: Tensor) -> Tensor:
        """int64 [B * n, L + s] from [B * n, L' + s]: the caller's prompts in place of the compact ones."""
        prompts = full_ids.repeat_interleave(len(sequences) // len(full_ids), dim=0)
        return torch.cat([prompts.to(sequences.device), sequences[:, prompt.length :]], dim=1)

    selected |= _length_limits(selected, handle.model.generation_config, prompt)
    if selected.get("streamer") is not None:
        selected["streamer"] = _FullPromptStreamer(selected["streamer"], restore)
    result = handle.model_generate(**selected)
    if isinstance(result, Tensor):
        _remember(cache, prompt)
        return restore(result)
    _remember(result.get(CACHE), prompt)
    result.sequences = restore(result.sequences)
    return result


def _by_name(function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    positional = inspect.signature(function).bind_partial(*args).arguments if args else {}
    inputs = dict(**positional, **kwargs)
    if OTHER_CACHE in inputs and CACHE not in inputs:
        inputs[CACHE] = inputs.pop(OTHER_CACHE)
    return inputs


def _remember(cache: Cache | None, prompt: CompactPrompt | None) -> None:
    """Let a cache say what prompt it began with, since its length no longer does; the note survives deepcopy."""
    if cache is not None:
        setattr(cache, CACHE_NOTE, prompt)


def _recall(cache: Cache | None) -> CompactPrompt | None:
    """The compact prompt that ``cache`` began with, unless it was emptied since."""
    prompt = getattr(cache, CACHE_NOTE, None)
    if cache is not None and prompt is not None and not cache.get_seq_length():
        _remember(cache, None)
        return None
    return prompt


def _length_limits(inputs: dict[str, Any], defaults: GenerationConfig, prompt: CompactPrompt) -> dict[str, Any]:
    """``max_length`` and ``min_length`` less the dropped tokens, since callers count the full prompt."""
    config = copy.copy(inputs.get("generation_config"))
    limits: dict[str, Any] = {"generation_config": config}
    for name in ("max_length", "min_length"):
        sources = (inputs.get(name), getattr(config, name, None), getattr(defaults, name))
        limit = next((limit for limit in sources if limit is not None), None)
        if limit is not None:
            limit = max(0, limit - (prompt.full_length - prompt.length))
            if config is None or inputs.get(name) is not None:
                limits[name] = limit
            else:
                setattr(config, name, limit)
    return limits


class _FullPromptStreamer(BaseStreamer):
    """Hands the full prompt to a streamer, where ``generate`` begins with the compact one."""

    def __init__(self, streamer: BaseStreamer, restore: Callable[[Tensor], Tensor]):
        self.streamer = streamer
        self.restore: Callable[[Tensor], Tensor] | None = restore

    def put(self, value: Tensor) -> None:
        if self.restore is not None:
            value, self.restore = self.restore(value), None
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()
