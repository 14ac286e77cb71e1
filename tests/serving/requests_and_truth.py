"""Requests to a served model, and what transformers with an attached selector answers to them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vs_kernels import VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
NEW_TOKENS = 12
FPS = 2.0


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng([height, width, seed]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def video(frames: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and the metadata without which vLLM would sample frames anew."""
    values = np.random.default_rng([frames, height, width, seed]).integers(0, 255, (frames, height, width, 3))
    metadata = {
        "fps": FPS,
        "total_num_frames": frames,
        "duration": frames / FPS,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return values.astype(np.uint8), metadata


class Request(NamedTuple):
    text: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[tuple[np.ndarray, dict[str, Any]], ...] = ()

    def for_vllm(self, budget: float | None = None) -> dict[str, Any]:
        data = {"image": list(self.images), "video": list(self.videos)}
        request: dict[str, Any] = {"prompt": self.text}
        if any(data.values()):
            request["multi_modal_data"] = {name: items for name, items in data.items() if items}
            request["mm_processor_kwargs"] = {} if budget is None else {"budget": budget}
        return request


REQUESTS = {
    "image": Request(f"hello {IMAGE} what is it?", (image(224, 280),)),
    "two images": Request(f"{IMAGE} and {IMAGE} differ?", (image(140, 336), image(196, 196))),
    "video": Request(f"see {VIDEO} then?", (), (video(8, 112, 140),)),
    "mixed": Request(f"a {VIDEO} b {IMAGE} c {VIDEO} d", (image(196, 252),), (video(4, 112, 84), video(6, 84, 112))),
    "text": Request("no picture at all, only words"),
}


class Answer(NamedTuple):
    """Generated tokens, their log-probabilities, and how many tokens the language model read."""

    tokens: list[int]
    logprobs: list[float]
    prompt_length: int


class Truth:
    """A model in transformers, with a selector attached where a budget is given."""

    def __init__(self, folder: Path, selector: Path):
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.selector = VisionTokenSelector.from_pretrained(selector)

    def answer(self, request: Request, budget: float) -> Answer:
        inputs = self.inputs(request)
        with attach_selector(self.model, self.selector, budget) as handle:
            output = self.model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            full = inputs["input_ids"].shape[1]
            length = full if handle.last_prompt is None else handle.last_prompt.length
        tokens = output.sequences[0, full:].tolist()
        logprobs = torch.stack(output.logits)[:, 0].log_softmax(-1)
        return Answer(tokens, logprobs[torch.arange(len(tokens)), tokens].tolist(), length)

    def inputs(self, request: Request) -> dict[str, Any]:
        pixels: dict[str, Any] = {"images": list(request.images)} if request.images else {}
        if request.videos:
            pixels |= {
                "videos": [pixels for pixels, _ in request.videos],
                "video_metadata": [
                    {name: value for name, value in metadata.items() if name != "do_sample_frames"}
                    for _, metadata in request.videos
                ],
                "do_sample_frames": False,
            }
        return dict(self.processor(text=[request.text], return_tensors="pt", **pixels))
