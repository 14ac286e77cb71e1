"""Where the time of one prefill goes: ViT, what lies between it and the LLM, LLM."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from bench.harness import Clock, Mark, Seconds


class _LLMStarts(Exception):
    """Ends a call where the language model would begin."""


class Prefill(NamedTuple):
    """One prefill, from pixels and prompt to the logits of the first new token.

    Attributes:
        vit: the vision encoder with its merger; 0 of a prompt without pixels.
        selection: all that is neither ViT nor LLM: scoring, Top-K, gather, the shorter prompt and its positions, and
            what a model without selection does there as well, see :func:`time_between`.
        llm: the language model, its head on the last position, and the first new token.
        total: the call: the time to the first token, from pixels on.
        sequence_length: tokens that the language model read.
        kv_cache_bytes: size of the KV cache that it left.
        logits: [B, vocabulary], of the last position.
        token: int64 [B], the first new token.
    """

    vit: Seconds
    selection: Seconds
    llm: Seconds
    total: Seconds
    sequence_length: int
    kv_cache_bytes: int
    logits: Tensor
    token: Tensor

    def encoded_as(self, other: "Prefill") -> "Prefill":
        """The times with the vision encoder of another call, where that of this one did not run."""
        total = (one - own + theirs for one, own, theirs in zip(self.total, self.vit, other.vit, strict=True))
        return self._replace(vit=other.vit, total=Seconds(*total))


@torch.inference_mode()
def timed_prefill(model: PreTrainedModel, inputs: dict[str, Tensor], clock: Clock) -> Prefill:
    """Run ``model`` once on ``inputs``, as a user calls it, with marks where the ViT and the LLM begin and end."""
    with _marked(model, clock) as marks:
        output = model(**inputs, logits_to_keep=1, use_cache=True)
        # To the first new token, which is what somebody waits for.
        token = output.logits[:, -1].argmax(dim=-1)
        marks["call ends"] = clock.mark()
        clock.synchronize()
    vit = _vit(marks, clock)
    llm = clock.between(marks["llm starts"], marks["call ends"])
    total = clock.between(marks["call starts"], marks["call ends"])
    cache = output.past_key_values
    return Prefill(
        vit=vit,
        selection=_less(_less(total, vit), llm),
        llm=llm,
        total=total,
        sequence_length=cache.get_seq_length(),
        kv_cache_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        logits=output.logits[:, -1],
        token=token,
    )


@torch.inference_mode()
def time_between(model: PreTrainedModel, inputs: dict[str, Tensor], clock: Clock) -> Seconds:
    """What ``model`` takes from the call to its language model, which does not run, less its vision encoder."""

    def stop(*_: object) -> None:
        raise _LLMStarts

    with _marked(model, clock) as marks:
        hook = model.model.language_model.register_forward_pre_hook(stop)  # after the one that marks
        try:
            with contextlib.suppress(_LLMStarts):
                model(**inputs, logits_to_keep=1, use_cache=True)
            clock.synchronize()
        finally:
            hook.remove()
    return _less(clock.between(marks["call starts"], marks["llm starts"]), _vit(marks, clock))


@contextlib.contextmanager
def _marked(model: PreTrainedModel, clock: Clock) -> Iterator[dict[str, Mark]]:
    """Marks of the one call made in this context: where it starts, where the ViT starts and ends, where the LLM starts;
    the ViT's are lacking where it does not run."""
    marks: dict[str, Mark] = {}

    def mark(name: str, *_: object) -> None:
        marks[name] = clock.mark()

    visual, language_model = model.model.visual, model.model.language_model
    hooks = [
        visual.register_forward_pre_hook(partial(mark, "vit starts")),
        visual.register_forward_hook(partial(mark, "vit ends")),
        language_model.register_forward_pre_hook(partial(mark, "llm starts")),
    ]
    try:
        clock.synchronize()
        mark("call starts")
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def _vit(marks: dict[str, Mark], clock: Clock) -> Seconds:
    return clock.between(marks["vit starts"], marks["vit ends"]) if "vit starts" in marks else Seconds(0.0, 0.0)


def _less(whole: Seconds, part: Seconds) -> Seconds:
    return Seconds(whole.wall - part.wall, whole.process - part.process)


@contextlib.contextmanager
def encoded_once(model: PreTrainedModel, made: list[Any]) -> Iterator[None]:
    """In this context the vision encoder returns what it made before, where ``made`` holds it.

    Args:
        made: empty, or with that output; the first call fills it. The same list in several contexts, one within
            another too, has the encoder run once for all of them.
    """
    visual = model.model.visual
    encode, outer = visual.forward, vars(visual).get("forward")

    def forward(*args: object, **kwargs: object) -> object:
        if not made:
            made[:] = [encode(*args, **kwargs)]
        # A copy: callers put other tokens into it, and find it in the caches as if it had just been made.
        copies = {name: value.clone() for name, value in made[0].items()}
        return dataclasses.replace(made[0], **copies)

    visual.forward = forward
    try:
        yield
    finally:
        del visual.forward
        if outer is not None:
            visual.forward = outer


def write_trace(path: Path, model: PreTrainedModel, inputs: dict[str, Tensor], device: torch.device) -> None:
    """Write a trace of one prefill that Perfetto and chrome://tracing read, with ranges for ViT, LLM and the call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    ranges: dict[str, record_function] = {}

    def begin(name: str, *_: object) -> None:
        ranges[name] = record_function(name)
        ranges[name].__enter__()

    def end(name: str, *_: object) -> None:
        ranges.pop(name).__exit__(None, None, None)

    hooks = []
    for name, module in (("ViT", model.model.visual), ("LLM", model.model.language_model)):
        hooks.append(module.register_forward_pre_hook(partial(begin, name)))
        hooks.append(module.register_forward_hook(partial(end, name)))
    try:
        with profile(activities=activities) as profiler, record_function("prefill"), torch.inference_mode():
            model(**inputs, logits_to_keep=1, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    profiler.export_chrome_trace(str(path))
