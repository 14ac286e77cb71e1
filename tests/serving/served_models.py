"""Tiny models with a tokenizer and a processor, as vLLM loads them from a folder; and a selector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from bench.serve_model import CHAT_TEMPLATE, SPECIAL, byte_tokenizer
from vs_kernels import ImportanceScorer, VisionTokenSelector

HIDDEN_SIZE = 128


def _configs(tokenizer: PreTrainedTokenizerFast, **text: Any) -> dict[str, Any]:
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL}
    return {
        "text_config": {
            "vocab_size": 320,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            **text,
        },
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }


def _save(folder: Path, model: PreTrainedModel, processor: Any) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Wide enough for logits that differ clearly, so that equal tokens mean equal models.
                parameter.normal_(0, 0.08)
    # A random model must not stop early.
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": HIDDEN_SIZE,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(vision_config=vision, **_configs(tokenizer, rope_parameters=rope))
    torch.manual_seed(0)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    return _save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 1e6}
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": HIDDEN_SIZE,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(vision_config=vision, **_configs(tokenizer, head_dim=32, rope_parameters=rope))
    torch.manual_seed(0)
    # One mean and deviation for images and videos, as published: vLLM normalises both with those of images.
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=64 * 64, max_pixels=32 * 32 * 1280, **images),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


def selector(folder: Path) -> Path:
    torch.manual_seed(1)
    scorer = ImportanceScorer(HIDDEN_SIZE)
    for projection in (scorer.q_proj, scorer.k_proj):
        torch.nn.init.normal_(projection.weight, std=0.1)
    VisionTokenSelector(scorer, budget=0.2).save_pretrained(folder)
    return folder


ALL: dict[str, Callable[[Path], Path]] = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "selector": selector}
