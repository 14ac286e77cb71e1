"""Small models with a selector, and the oracle of a prompt that lost tokens.

The oracle is the unpatched model on the full prompt, told by its attention mask to ignore the dropped tokens and by
position_ids to leave the others where they are: it must agree with the compact prompt to rounding.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN_SIZE, IMAGE, VIDEO, prompt, qwen2_5_vl, qwen2_vl
from torch import Tensor, nn
from transformers import PreTrainedModel

from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.integrations.transformers import CompactPrompt, SelectorHandle

FAMILIES = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}
ATTENTIONS = ("eager", "sdpa")
LOGIT_TOLERANCE = {"rtol": 0, "atol": 1e-5}

SMALL, WIDE, TALL, CLIP = ("image", 1, 4, 4), ("image", 1, 4, 6), ("image", 1, 6, 3), ("video", 3, 4, 4)
TWO_AND_ONE = ([5, SMALL, 3, WIDE, 4], [6, TALL, 2])
PROMPTS: dict[str, dict[str, Any]] = {
    "two images and one": {"rows": TWO_AND_ONE},
    "right padded": {"rows": TWO_AND_ONE, "side": "right"},
    "one row": {"rows": ([3, SMALL, 2],)},
    "a row without images": {"rows": ([5, SMALL, 3], [7], [2, WIDE, 2])},
    "videos": {"rows": ([5, CLIP, 3, CLIP, 2], [4, CLIP, 4])},
    "image and video": {"rows": ([5, SMALL, 3, CLIP, 4, WIDE, 2], [4, CLIP, 2], [3, TALL, 6])},
}


@pytest.fixture(name="family", params=FAMILIES)
def each_family(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    return FAMILIES[request.param]


@pytest.fixture(name="inputs", params=PROMPTS)
def each_prompt(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    spec = PROMPTS[request.param]
    return prompt(*spec["rows"], side=spec.get("side", "left"))


def make_selector(in_features: int = HIDDEN_SIZE, **options: Any) -> VisionTokenSelector:
    generator = torch.Generator().manual_seed(1)
    selector = VisionTokenSelector(ImportanceScorer(in_features), **options)
    for parameter in selector.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return selector.eval()


def kept_columns(handle: SelectorHandle, inputs: dict[str, Tensor]) -> Tensor:
    """bool [B, L]: attended to, and not a dropped placeholder."""
    keep = inputs["attention_mask"].bool()
    for modality, placeholder in (("image", IMAGE), ("video", VIDEO)):
        if modality in handle.last_selection:
            selection = handle.last_selection[modality]
            chosen = torch.zeros(selection.plan.total_tokens, dtype=torch.bool)
            chosen[selection.indices] = True
            keep[inputs["input_ids"] == placeholder] = chosen
    return keep


def full_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model.model.get_rope_index(**inputs)[0]


def oracle_inputs(handle: SelectorHandle, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {
        "attention_mask": kept_columns(handle, inputs).long(),
        "position_ids": full_positions(handle.model, inputs),
    }


def assert_matches_oracle(logits: Tensor, full_logits: Tensor, compact: CompactPrompt) -> None:
    """Compact logits [B, L', V] against those of the full prompt, [B, L, V]."""
    kept = compact.columns >= 0
    expected = full_logits.gather(1, compact.columns.clamp_min(0)[..., None].expand(-1, -1, logits.shape[-1]))
    torch.testing.assert_close(logits[kept], expected[kept], **LOGIT_TOLERANCE)
