"""Qwen2.5-VL in vLLM: an image or video is one run of visual tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vs_kernels.integrations.vllm.model import SelectingModel
from vs_kernels.integrations.vllm.positions import ItemLayout, grid_positions
from vs_kernels.integrations.vllm.processing import SelectingProcessor, TextBehind


def layout(config: Any, modality: str, item: Mapping[str, Any]) -> ItemLayout:
    """The layout of one image or video of a model with this ``config``; the time of a video is in its seconds."""
    frames, height, width = item[f"{modality}_grid_thw"].tolist()
    merge = config.vision_config.spatial_merge_size
    time_factor = 1.0
    if modality == "video":
        time_factor = float(item.get("second_per_grid_ts", 1.0)) * config.vision_config.tokens_per_second
    positions = grid_positions(frames, height // merge, width // merge, time_factor)
    tokens = positions.shape[1]
    placeholder = getattr(config, f"{modality}_token_id")
    return ItemLayout([placeholder] * tokens, torch.ones(tokens, dtype=torch.bool), positions)


class Processor(SelectingProcessor, Qwen2_5_VLMultiModalProcessor):
    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        return layout(self.info.get_hf_config(), modality, item)


class DummyInputs(TextBehind, Qwen2_5_VLDummyInputsBuilder):
    pass


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=DummyInputs)
class SelectingQwen2_5_VL(SelectingModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with a selector behind its encoder."""

    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        return layout(self.config, modality, item)
