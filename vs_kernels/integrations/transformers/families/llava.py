"""LLaVA, LLaVA-NeXT and LLaVA-OneVision; Mistral 3, which reads and encodes like LLaVA."""

from typing import ClassVar

from torch import Tensor
from transformers.utils import ModelOutput

from vs_kernels.integrations.transformers.families.interface import Family, as_one_tensor


class Llava(Family):
    """LLaVA and Mistral 3."""

    model_classes: ClassVar[tuple[str, ...]] = ("LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration")
    encoder_arguments: ClassVar[tuple[str, ...]] = (
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )


class LlavaNext(Llava):
    """LLaVA-NeXT: a newline token ends every row of an image, marks the layout and is always kept."""

    model_classes: ClassVar[tuple[str, ...]] = ("LlavaNextForConditionalGeneration",)

    def always_kept(self, tokens: Tensor) -> Tensor | None:
        # The model appends this parameter as it is, so equality finds it whatever the layout.
        return (tokens == self.model.model.image_newline.detach().to(tokens)).all(-1)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: newline tokens as in LLaVA-NeXT, and one at the end of a video."""

    model_classes: ClassVar[tuple[str, ...]] = ("LlavaOnevisionForConditionalGeneration",)
    encoder_arguments: ClassVar[tuple[str, ...]] = (
        *Llava.encoder_arguments,
        "image_sizes_videos",
        "batch_num_images",
        "vision_aspect_ratio",
    )

    def pack(self, modality: str, output: ModelOutput) -> ModelOutput:
        return as_one_tensor(output) if modality == "video" else output
