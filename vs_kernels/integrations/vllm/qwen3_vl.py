"""Qwen3-VL in vLLM: frames of a video stand apart, each with its time stamp, and DeepStack rows follow their tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vs_kernels.integrations.vllm.model import SelectingModel
from vs_kernels.integrations.vllm.positions import ItemLayout, grid_positions
from vs_kernels.integrations.vllm.processing import SelectingProcessor, TextBehind


def layout(config: Any, tokenizer: Any, modality: str, item: Mapping[str, Any]) -> ItemLayout:
    """The layout of one image or video of a model with this ``config``."""
    frames, height, width = item[f"{modality}_grid_thw"].tolist()
    merge = config.vision_config.spatial_merge_size
    grid = grid_positions(1, height // merge, width // merge)
    tokens = grid.shape[1]
    placeholder = getattr(config, f"{modality}_token_id")
    if modality == "image":
        return ItemLayout([placeholder] * tokens, torch.ones(tokens, dtype=torch.bool), grid)
    token_ids = Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=[tokens] * frames,
        timestamps=item["timestamps"],
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=placeholder,
    ).full
    visual = torch.tensor(token_ids) == placeholder
    # A text token moves the position by 1, a frame by the longer of its sides, with its first visual token.
    steps = (~visual).long()
    first = visual.nonzero()[::tokens, 0]
    steps[first] = int(grid.max()) + 1
    positions = (steps.cumsum(0) - steps).expand(3, -1).clone()
    positions[:, visual] = positions[:, first].repeat_interleave(tokens, 1) + grid.repeat(1, frames)
    return ItemLayout(list(token_ids), visual, positions)


class Processor(SelectingProcessor, Qwen3VLMultiModalProcessor):
    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        return layout(self.info.get_hf_config(), self.info.get_tokenizer(), modality, item)


class DummyInputs(TextBehind, Qwen3VLDummyInputsBuilder):
    pass


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3VLProcessingInfo, dummy_inputs=DummyInputs)
class SelectingQwen3VL(SelectingModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with a selector behind its encoder."""

    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        return layout(self.config, self._tokenizer, modality, item)

    def text_embeddings(self, token_ids: list[int], like: Tensor) -> Tensor:
        rows = self.get_language_model().embed_input_ids(torch.tensor(token_ids, device=like.device))
        # DeepStack adds nothing to text.
        return functional.pad(rows, (0, like.shape[1] - rows.shape[1]))
