"""The model of a benchmark: Qwen2.5-VL of a given size with random weights, or the user's own weights."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen2_5_VLConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen2_5_VL
from transformers.initialization import no_init_weights


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Qwen2.5-VL, as its config names them."""

    name: str
    text: dict[str, int]
    vision: dict[str, int]
    mrope_section: tuple[int, int, int]


DEMO = Architecture(
    "Qwen2.5-VL, its LLM of the Qwen2.5-0.5B shape, a reduced ViT",
    text={
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    vision={"depth": 8, "hidden_size": 640, "intermediate_size": 1728, "num_heads": 10},
    mrope_section=(8, 12, 12),
)
TINY = Architecture(
    "a tiny Qwen2.5-VL",
    text={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    vision={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
    mrope_section=(4, 6, 6),
)


def random_model(
    size: Architecture, device: torch.device, dtype: torch.dtype, seed: int, attention: str = "sdpa"
) -> Qwen2_5_VL:
    """A Qwen2.5-VL of ``size`` with weights N(0, 0.02), made in seconds: each weight is drawn once, where it stays."""
    depth = size.vision["depth"]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(size.mrope_section)}
    config = Qwen2_5_VLConfig(
        text_config=size.text | {"vocab_size": 152064, "pad_token_id": 151643, "rope_parameters": rope},
        # As in the released models, the last block of every group attends to the whole image.
        vision_config=size.vision
        | {"out_hidden_size": size.text["hidden_size"], "fullatt_block_indexes": [depth // 2 - 1, depth - 1]},
        tie_word_embeddings=True,
    )
    with no_init_weights(), device:
        model = Qwen2_5_VL._from_config(config, dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def pretrained_model(name: str, device: torch.device, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The weights in a directory or in a repository of the Hugging Face hub."""
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, attn_implementation=attention)
    return model.eval().to(device)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
