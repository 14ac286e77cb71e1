"""What differs between model families: how they encode, mark and place visual tokens."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.utils import ModelOutput


class QwenVL:
    """Qwen2-VL and Qwen2.5-VL: one placeholder for every visual token, rotary positions in (time, height, width).

    This is also the interface of a family; everything else in this package is the same for all of them.

    Attributes:
        pixels: arguments of ``forward`` that are encoded.
        position_sources: arguments of ``forward`` that serve to compute positions.
        placeholders: by modality, the token id that stands for one visual token in the prompt.
        hidden_size: width of the visual tokens that the language model reads.
        pad_token_id: a token that is no placeholder.
    """

    model_classes = (Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration)
    pixels: tuple[str, ...] = ("pixel_values", "pixel_values_videos")
    position_sources = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")

    def __init__(self, model: PreTrainedModel):
        text_config = model.config.get_text_config()
        self._model = model.model
        self.placeholders = {"image": model.config.image_token_id, "video": model.config.video_token_id}
        self.hidden_size = text_config.hidden_size
        self.pad_token_id = text_config.pad_token_id or 0

    def encode(self, inputs: dict[str, Any]) -> dict[str, ModelOutput]:
        """Outputs of the vision encoder, by modality."""
        outputs = {}
        if inputs.get("pixel_values") is not None:
            outputs["image"] = self._model.get_image_features(
                inputs["pixel_values"], inputs.get("image_grid_thw"), return_dict=True
            )
        if inputs.get("pixel_values_videos") is not None:
            outputs["video"] = self._model.get_video_features(
                inputs["pixel_values_videos"], inputs.get("video_grid_thw"), return_dict=True
            )
        return outputs

    def tokens(self, output: ModelOutput) -> list[Tensor]:
        """The visual tokens in an output of the encoder, one [N, D] for every image or video."""
        return list(output["pooler_output"])

    def replace_tokens(self, output: ModelOutput, tokens: list[Tensor]) -> ModelOutput:
        """An output as the language model reads it, with ``tokens``, one [k, D] for every image or video."""
        return type(output)(pooler_output=tokens)

    def token_types(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L], the ``mm_token_type_ids`` of a prompt: 0 text, 1 image, 2 video."""
        return (input_ids == self.placeholders["image"]) + 2 * (input_ids == self.placeholders["video"])

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """int64 [3, B, L], the positions of the full prompt."""
        return self._model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=inputs.get("attention_mask"),
        )[0]

    @property
    def rope_deltas(self) -> Tensor | None:
        """int64 [B, 1], the distance from a row's number of tokens to its next position; state of the model."""
        return self._model.rope_deltas

    @rope_deltas.setter
    def rope_deltas(self, deltas: Tensor | None) -> None:
        self._model.rope_deltas = deltas


FAMILIES = (QwenVL,)


def family_of(model: PreTrainedModel) -> QwenVL:
    """The family that ``model`` belongs to.

    Raises:
        TypeError: no family has its class.
    """
    for family in FAMILIES:
        if isinstance(model, family.model_classes):
            return family(model)
    names = ", ".join(cls.__name__ for family in FAMILIES for cls in family.model_classes)
    raise TypeError(f"model: got {type(model).__name__}, expected one of {names}")
