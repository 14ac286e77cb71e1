"""InternVL, SmolVLM, Idefics3 and Gemma 3: images are cut into tiles of equally many tokens."""

from typing import ClassVar

from torch import Tensor
from transformers.utils import ModelOutput

from vs_kernels.integrations.transformers.families.interface import Family, as_one_tensor


class InternVL(Family):
    """InternVL: tiles of an image, or frames of a video, come as one tensor."""

    model_classes: ClassVar[tuple[str, ...]] = ("InternVLForConditionalGeneration",)
    encoder_arguments: ClassVar[tuple[str, ...]] = ("vision_feature_layer", "vision_feature_select_strategy")
    item: ClassVar[str] = "tile"

    def pack(self, modality: str, output: ModelOutput) -> ModelOutput:
        return as_one_tensor(output)


class Gemma3(Family):
    """Gemma 3: tokens of an image attend to each other in both directions, as ``token_type_ids`` say."""

    model_classes: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)
    item: ClassVar[str] = "tile"

    def pack(self, modality: str, output: ModelOutput) -> ModelOutput:
        return as_one_tensor(output)


class SmolVLM(Family):
    """SmolVLM and Idefics3: tokens come as one tensor for every sample."""

    model_classes: ClassVar[tuple[str, ...]] = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
    encoder_arguments: ClassVar[tuple[str, ...]] = ("pixel_attention_mask",)
    item: ClassVar[str] = "tile"

    def tokens(self, output: ModelOutput) -> list[Tensor]:
        length = self.model.model.image_seq_len
        return [tile for sample in output["pooler_output"] for tile in sample.split(length) if len(tile)]
