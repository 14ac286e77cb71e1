"""A question about images to a model with its processor, with the time of its prefill."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vs_kernels.integrations.transformers.attach import SelectorHandle


class Reply(NamedTuple):
    """What a model answered.

    Attributes:
        text: its answer.
        visual_tokens: visual tokens that the language model read.
        prefill_seconds: from pixels on the device to the logits of the first token.
    """

    text: str
    visual_tokens: int
    prefill_seconds: float


class FirstLogits(LogitsProcessor):
    """Notes when the first logits were there, and changes none."""

    def __init__(self) -> None:
        self.time: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.time is None:
            if scores.device.type != "cpu":
                torch.accelerator.synchronize(scores.device)
            self.time = time.perf_counter()
        return scores


def ask(
    handle: SelectorHandle, processor: Any, images: Sequence[Path], question: str, budget: float, max_new_tokens: int
) -> Reply:
    """The greedy answer of the model of ``handle`` to one question about some images, by its chat template."""
    model: Any = handle.model
    content = [{"type": "image", "image": _open(path)} for path in images] + [{"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    first = FirstLogits()
    started = time.perf_counter()
    sequences, selected = model.generate(
        **inputs,
        budget=budget,
        return_selection=True,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList([first]),
    )
    assert first.time is not None
    text = processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    kept = sum(len(item.indices) for items in selected.values() for item in items)
    return Reply(text.strip(), kept, first.time - started)


def _open(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
