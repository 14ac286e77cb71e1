"""The inputs of a Qwen2-VL model: one question about one photo."""

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.photo import PATCH

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
IMAGE_ID = 151655
# PROMPT in the ids of Qwen2.5-VL, whose tokenizer is not at hand without a download.
BEFORE_IMAGE = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652]
AFTER_IMAGE = [151653, 74785, 419, 2168, 13, 151645, 198, 151644, 77091, 198]


def random_model_inputs(photo: Image.Image, visual_tokens: int) -> dict[str, Tensor]:
    """Inputs for a Qwen2.5-VL without files: Qwen2-VL's image processor, and the prompt's ids from this module.

    Args:
        photo: an RGB image.
        visual_tokens: number of visual tokens to come close to.

    Raises:
        ValueError: sides that differ by more than 200 times.
    """
    ids = [*BEFORE_IMAGE, IMAGE_ID, *AFTER_IMAGE]
    return _inputs(photo, visual_tokens, Qwen2VLImageProcessorPil(), ids, IMAGE_ID)


def pretrained_inputs(photo: Image.Image, visual_tokens: int, name: str) -> dict[str, Tensor]:
    """Inputs as :func:`random_model_inputs`, by the processor and the tokenizer of a directory or hub repository."""
    # Not AutoProcessor: it needs torchvision, for the videos that nobody asks about here.
    tokenizer = AutoTokenizer.from_pretrained(name)
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = tokenizer(PROMPT).input_ids
    if ids.count(image_id) != 1:
        raise ValueError(f"{name}: its tokenizer does not know <|image_pad|>, expected a Qwen2-VL or Qwen2.5-VL model")
    return _inputs(photo, visual_tokens, AutoImageProcessor.from_pretrained(name), ids, image_id)


def _inputs(
    photo: Image.Image, visual_tokens: int, processor: BaseImageProcessor, ids: list[int], image_id: int
) -> dict[str, Tensor]:
    pixels = visual_tokens * PATCH**2
    image = processor(images=[photo], size={"shortest_edge": pixels, "longest_edge": pixels}, return_tensors="pt")
    count = int(image["image_grid_thw"].prod()) // processor.merge_size**2
    at = ids.index(image_id)
    input_ids = torch.tensor([ids[:at] + [image_id] * count + ids[at + 1 :]])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == image_id).long(),
        "pixel_values": image["pixel_values"],
        "image_grid_thw": image["image_grid_thw"],
    }
