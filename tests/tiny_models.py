"""Tiny random vision-language models and prompts for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from bench.tiny_families import END, HIDDEN_SIZE, IMAGE, MROPE, PAD, QWEN_IDS, START, TEXT, VIDEO

PATCH_FEATURES = 3 * 2 * 14 * 14
MERGE = 2
TEXT_CONFIG: dict[str, Any] = TEXT | {"rope_parameters": MROPE}


def qwen2_vl(attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN_SIZE, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=TEXT_CONFIG, vision_config=vision, **QWEN_IDS)
    return _build(Qwen2VLForConditionalGeneration, config, attention, seed)


def qwen2_5_vl(attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": HIDDEN_SIZE,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    }
    config = Qwen2_5_VLConfig(text_config=TEXT_CONFIG, vision_config=vision, **QWEN_IDS)
    return _build(Qwen2_5_VLForConditionalGeneration, config, attention, seed)


def _build(cls: type[PreTrainedModel], config: Any, attention: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Wide enough for logits that differ clearly, so that equal tokens mean equal models.
                parameter.normal_(0, 0.15)
    return model.eval()


def prompt(*rows: list[Any], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """Inputs as a processor makes them.

    Args:
        rows: one list for every row: an int is so many text tokens, ``("image", t, h, w)`` and ``("video", t, h, w)``
            are so many visual tokens between their start and end tokens.
        side: where shorter rows are padded.
    """
    generator = torch.Generator().manual_seed(seed)
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    ids = []
    for row in rows:
        tokens: list[int] = []
        for segment in row:
            if isinstance(segment, int):
                tokens += torch.randint(3, 80, (segment,), generator=generator).tolist()
            else:
                modality, t, h, w = segment
                grids[modality].append([t, h * MERGE, w * MERGE])
                placeholder = IMAGE if modality == "image" else VIDEO
                tokens += [START, *[placeholder] * (t * h * w), END]
        ids.append(tokens)
    length = max(map(len, ids))
    padding = [[PAD] * (length - len(row)) for row in ids]
    pad = (lambda row, fill: fill + row) if side == "left" else (lambda row, fill: row + fill)
    input_ids = torch.tensor([pad(row, fill) for row, fill in zip(ids, padding, strict=True)])
    mask = torch.tensor([pad([1] * len(row), fill) for row, fill in zip(ids, padding, strict=True)])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "mm_token_type_ids": (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO).long(),
    }
    for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[modality]:
            grid = torch.tensor(grids[modality])
            inputs[pixels] = torch.randn(int(grid.prod(1).sum()), PATCH_FEATURES, generator=generator)
            inputs[f"{modality}_grid_thw"] = grid
    return inputs
