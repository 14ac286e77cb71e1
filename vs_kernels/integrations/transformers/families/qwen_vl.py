"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5: rotary positions in (time, height, width)."""

from typing import Any, ClassVar

from torch import Tensor
from transformers.utils import ModelOutput

from vs_kernels.integrations.transformers.families.interface import Family, take_rows


class QwenVL(Family):
    """Qwen2-VL and Qwen2.5-VL."""

    model_classes: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
    position_sources: ClassVar[tuple[str, ...]] = (
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "mm_token_type_ids",
    )
    column_arguments: ClassVar[tuple[str, ...]] = ()
    needs_mask: ClassVar[bool] = False

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("mm_token_type_ids") is None:
            inputs = inputs | {"mm_token_type_ids": self.token_types(inputs)}
        return inputs

    def token_types(self, inputs: dict[str, Any]) -> Tensor:
        """int64 [B, L], the ``mm_token_type_ids`` of a prompt: 0 text, 1 image, 2 video."""
        input_ids = inputs["input_ids"]
        return (input_ids == self.placeholders["image"]) + 2 * (input_ids == self.placeholders["video"])

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        names = ("attention_mask", *self.position_sources)
        sources = {name: inputs[name] for name in names if inputs.get(name) is not None}
        return self.model.model.get_rope_index(inputs["input_ids"], **sources)[0]

    def check_positions(self, inputs: dict[str, Any]) -> None:
        pass

    def language_model_positions(self, positions: Tensor) -> Tensor:
        return positions

    @property
    def rope_deltas(self) -> Tensor | None:
        return self.model.model.rope_deltas

    @rope_deltas.setter
    def rope_deltas(self, deltas: Tensor | None) -> None:
        self.model.model.rope_deltas = deltas


class Qwen3VL(QwenVL):
    """Qwen3-VL: frames of a video stand apart in the prompt, and features of earlier layers of the encoder are added
    to the first layers of the language model (DeepStack), row for row with the tokens."""

    model_classes: ClassVar[tuple[str, ...]] = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")

    def replace_tokens(
        self, output: ModelOutput, tokens: list[Tensor], rows: Tensor | None, scale: Tensor | None
    ) -> ModelOutput:
        lengths = [len(item) for item in tokens]
        layers = [take_rows(layer, lengths, rows, scale) for layer in output["deepstack_features"]]
        return type(output)(pooler_output=tokens, deepstack_features=layers)


class Qwen35(QwenVL):
    """Qwen3.5: frames of a video stand apart in the prompt; most layers of the language model are recurrent."""

    model_classes: ClassVar[tuple[str, ...]] = (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    )


class Glm4V(QwenVL):
    """GLM-4V: frames of a video stand apart in the prompt, and have the placeholder of images."""

    model_classes: ClassVar[tuple[str, ...]] = (
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm46VForConditionalGeneration",
    )

    def __init__(self, model):
        super().__init__(model)
        self.placeholders = dict.fromkeys(self.placeholders, model.config.image_token_id)

    def token_types(self, inputs: dict[str, Any]) -> Tensor:
        is_video = inputs.get("pixel_values") is None
        return (inputs["input_ids"] == self.placeholders["image"]) * (2 if is_video else 1)
