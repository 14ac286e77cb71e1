"""The inputs of a Qwen2-VL model: one question about photos, or about a video made of one."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageChops
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.photo import PATCH

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
QUESTION = "Describe this image.<|im_end|>\n<|im_start|>assistant\n"
# The same in the ids of Qwen2.5-VL, whose tokenizer is not at hand without a download.
SYSTEM_IDS = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
QUESTION_IDS = [74785, 419, 2168, 13, 151645, 198, 151644, 77091, 198]
VISION_START, VISION_END = 151652, 151653
IMAGE_ID, VIDEO_ID = 151655, 151656
TOKEN_TYPES = {"image": 1, "video": 2}


@dataclass(frozen=True)
class Request:
    """What a prompt holds.

    Attributes:
        size: of an image or a frame: a number of visual tokens to come close to, or (columns, rows) in pixels.
        batch: rows of the batch.
        images: of every row.
        frames: of one video in every row, in place of images; even; 0: images.
    """

    size: int | tuple[int, int] = 1024
    batch: int = 1
    images: int = 1
    frames: int = 0

    @property
    def modality(self) -> str:
        return "video" if self.frames else "image"

    def __str__(self) -> str:
        size = f"{self.size:,} visual tokens" if isinstance(self.size, int) else "{} x {} pixels".format(*self.size)
        parts = [f"{self.frames} frames of {size}" if self.frames else size]
        parts += [f"{self.images} images"] if self.images > 1 else []
        parts += [f"batch {self.batch}"] if self.batch > 1 else []
        return ", ".join(parts)


def random_model_inputs(photo: Image.Image, request: Request) -> dict[str, Tensor]:
    """Inputs for a Qwen2.5-VL without files: Qwen2-VL's image processor, and the prompt's ids from this module.

    Args:
        photo: an RGB image.
        request: what the prompt holds; every further image and frame is the photo, moved a little.

    Raises:
        ValueError: sides that differ by more than 200 times.
    """
    placeholder = VIDEO_ID if request.frames else IMAGE_ID
    items = [VISION_START, placeholder, VISION_END] * (1 if request.frames else request.images)
    return _inputs(photo, request, Qwen2VLImageProcessorPil(), [*SYSTEM_IDS, *items, *QUESTION_IDS], placeholder)


def pretrained_inputs(photo: Image.Image, request: Request, name: str) -> dict[str, Tensor]:
    """Inputs as :func:`random_model_inputs`, by the processor and the tokenizer of a directory or hub repository."""
    # Not AutoProcessor: it needs torchvision.
    tokenizer = AutoTokenizer.from_pretrained(name)
    pad = f"<|{request.modality}_pad|>"
    items = f"<|vision_start|>{pad}<|vision_end|>" * (1 if request.frames else request.images)
    placeholder = tokenizer.convert_tokens_to_ids(pad)
    ids = tokenizer(f"{SYSTEM}{items}{QUESTION}").input_ids
    if ids.count(placeholder) != items.count(pad):
        raise ValueError(f"{name}: its tokenizer does not know {pad}, expected a Qwen2-VL or Qwen2.5-VL model")
    return _inputs(photo, request, AutoImageProcessor.from_pretrained(name), ids, placeholder)


def _inputs(
    photo: Image.Image, request: Request, processor: BaseImageProcessor, ids: list[int], placeholder: int
) -> dict[str, Tensor]:
    if isinstance(request.size, int):
        pixels = request.size * PATCH**2
        limits = {"shortest_edge": pixels, "longest_edge": pixels}
    else:
        photo = photo.resize(request.size, Image.Resampling.BICUBIC)
        limits = {"shortest_edge": PATCH**2, "longest_edge": 2 * request.size[0] * request.size[1]}
    pictures = request.batch * (request.frames or request.images)
    moved = [ImageChops.offset(photo, 8 * number, 0) for number in range(pictures)]
    made = processor(images=moved, size=limits, return_tensors="pt")
    patches, grid = made["pixel_values"], made["image_grid_thw"]
    if request.frames:
        patches, grid = _as_videos(patches, grid, request, processor)
    lengths = (grid.prod(dim=1) // processor.merge_size**2).tolist()
    rows, items = [], iter(lengths)
    for _ in range(request.batch):
        row: list[int] = []
        for token in ids:
            row += [token] * (next(items) if token == placeholder else 1)
        rows.append(row)
    input_ids = torch.tensor(rows)
    suffix = "_videos" if request.frames else ""
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == placeholder).long() * TOKEN_TYPES[request.modality],
        f"pixel_values{suffix}": patches,
        f"{request.modality}_grid_thw": grid,
    }


def _as_videos(patches: Tensor, grid: Tensor, request: Request, processor: BaseImageProcessor) -> tuple[Tensor, Tensor]:
    """Patches of videos, two frames deep, from those of their frames, each of which the processor took twice."""
    depth = processor.temporal_patch_size
    _, height, width = grid[0].tolist()
    frames = patches.view(request.batch, request.frames // depth, depth, height * width, 3, depth, -1)
    # [rows, times, patches, colours, depth, pixels]: the copy at each depth from the frame of that depth.
    picked = torch.stack([frames[:, :, frame, :, :, frame] for frame in range(depth)], dim=4)
    times = request.frames // depth
    return picked.reshape(-1, patches.shape[1]), torch.tensor([[times, height, width]] * request.batch)
