"""InternVL, SmolVLM, Idefics3 and Gemma 3: images are cut into tiles of equally many tokens."""

from typing import ClassVar

from torch import Tensor
from transformers.utils import ModelOutput

from vs_kernels.integrations.transformers.families.interface import Family, as_one_tensor


class Tiles(Family):
    """What they share: a tile has its own budget, and ``forward`` reads one tensor."""

    def pack(self, modality: str, output: ModelOutput) -> ModelOutput:
        return as_one_tensor(output)


class InternVL(Tiles):
    """InternVL: frames of a video are tiles as well."""

    model_classes: ClassVar[tuple[str, ...]] = ("InternVLForConditionalGeneration",)
    encoder_arguments: ClassVar[tuple[str, ...]] = ("vision_feature_layer", "vision_feature_select_strategy")


class Gemma3(Tiles):
    """Gemma 3: tokens of a tile attend to each other in both directions, as ``token_type_ids`` say."""

    model_classes: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)


class SmolVLM(Tiles):
    """SmolVLM and Idefics3: the encoder hands out the tiles of a sample as one."""

    model_classes: ClassVar[tuple[str, ...]] = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
    encoder_arguments: ClassVar[tuple[str, ...]] = ("pixel_attention_mask",)

    def tokens(self, output: ModelOutput) -> list[Tensor]:
        length = self.model.model.image_seq_len
        return [tile for sample in output["pooler_output"] for tile in sample.split(length) if len(tile)]
