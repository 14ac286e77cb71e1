"""Where the time of one prefill goes: ViT, selection, LLM."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from bench.harness import Clock, Mark, Seconds


class Prefill(NamedTuple):
    """One prefill, from pixels and prompt to the logits of the first new token.

    Attributes:
        vit: the vision encoder with its merger; 0 of a prompt without pixels.
        selection: all that is neither ViT nor LLM: scoring, Top-K, gather, the shorter prompt and its positions, and
            the embedding of the prompt, which a model without selection does as well.
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
        output = model(**inputs, logits_to_keep=1, use_cache=True)
        # To the first new token, which is what somebody waits for.
        token = output.logits[:, -1].argmax(dim=-1)
        mark("call ends")
        clock.synchronize()
    finally:
        for hook in hooks:
            hook.remove()

    vit = clock.between(marks["vit starts"], marks["vit ends"]) if "vit starts" in marks else Seconds(0.0, 0.0)
    llm = clock.between(marks["llm starts"], marks["call ends"])
    total = clock.between(marks["call starts"], marks["call ends"])
    cache = output.past_key_values
    return Prefill(
        vit=vit,
        selection=Seconds(total.wall - vit.wall - llm.wall, total.process - vit.process - llm.process),
        llm=llm,
        total=total,
        sequence_length=cache.get_seq_length(),
        kv_cache_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        logits=output.logits[:, -1],
        token=token,
    )


@contextlib.contextmanager
def encoded_once(model: PreTrainedModel) -> Iterator[None]:
    """From its second call on, in this context, the vision encoder returns what it made in the first."""
    visual = model.model.visual
    encode, made, outer = visual.forward, [], vars(visual).get("forward")

    def forward(*args: object, **kwargs: object) -> object:
        if not made:
            made.append(encode(*args, **kwargs))
        return dataclasses.replace(made[0])  # callers put other tokens into it

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
