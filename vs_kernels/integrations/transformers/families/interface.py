"""The interface of a model family: how it encodes, marks and places visual tokens."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Family:
    """A family whose prompt has one placeholder for every visual token, and whose positions count tokens.

    A subclass names its classes and overrides what is different; ``docs/adapters.md`` shows one.

    Attributes:
        model_classes: names of the classes in transformers; those that an older version lacks are left out.
        encoder_arguments: arguments of ``forward`` that only the vision encoder reads, besides the pixels.
        position_sources: arguments of ``forward`` that serve to compute positions.
        column_arguments: arguments of ``forward`` [B, L] that follow the tokens when the prompt shrinks, 0 in padding.
        model: the model.
        placeholders: by modality, the token id that stands for one visual token in the prompt.
        hidden_size: width of the visual tokens that the language model reads.
        pad_token_id: a token that is no placeholder.
    """

    model_classes: ClassVar[tuple[str, ...]] = ()
    encoder_arguments: ClassVar[tuple[str, ...]] = ()
    position_sources: ClassVar[tuple[str, ...]] = ()
    column_arguments: ClassVar[tuple[str, ...]] = ("token_type_ids", "mm_token_type_ids")

    def __init__(self, model: PreTrainedModel):
        text_config = model.config.get_text_config()
        self.model = model
        self.placeholders = {
            modality: getattr(model.config, f"{modality}_token_id")
            for modality in PIXELS
            if getattr(model.config, f"{modality}_token_id", None) is not None
        }
        self.hidden_size: int = text_config.hidden_size
        self.pad_token_id: int = getattr(text_config, "pad_token_id", None) or 0

    @property
    def pixels(self) -> dict[str, str]:
        """By modality, the argument of ``forward`` that holds its pixels."""
        return {modality: name for modality, name in PIXELS.items() if modality in self.placeholders}

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of ``forward`` with those added that the caller may leave out."""
        return inputs

    def encode(self, inputs: dict[str, Any]) -> dict[str, ModelOutput]:
        """Outputs of the vision encoder, by modality."""
        outputs = {}
        for modality, name in self.pixels.items():
            if inputs.get(name) is not None:
                encoder = getattr(self.model.model, f"get_{modality}_features")
                known = inspect.signature(encoder).parameters
                given = {key: value for key, value in inputs.items() if key in known and value is not None}
                outputs[modality] = encoder(**given, return_dict=True)
        return outputs

    def tokens(self, output: ModelOutput) -> list[Tensor]:
        """The visual tokens in an output of the encoder, one [N, D] for every image, tile or video, in prompt order."""
        return list(output["pooler_output"])

    def always_kept(self, tokens: Tensor) -> Tensor | None:
        """bool [T] of packed tokens [T, D]: those that mark the layout and do not compete; None: all compete."""
        return None

    def replace_tokens(
        self, output: ModelOutput, tokens: list[Tensor], rows: Tensor | None, scale: Tensor | None
    ) -> ModelOutput:
        """An output with the selected tokens.

        Args:
            output: of the encoder.
            tokens: one [k, D] for every entry of :meth:`tokens`.
            rows: int64 [K], which packed rows they are; None: all.
            scale: [T, 1], what other features of the same tokens are multiplied by before rows are taken; None: 1.
        """
        return type(output)(pooler_output=tokens)

    def pack(self, modality: str, output: ModelOutput) -> ModelOutput:
        """An output as ``forward`` reads it, from one with a list of tokens, which ``generate`` can repeat and cut."""
        return output

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """int64 [R, B, L], the positions of the full prompt, as ``generate`` counts them."""
        input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if mask is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device).expand(1, *input_ids.shape)
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[None]

    def check_positions(self, inputs: dict[str, Any]) -> None:
        """Raise where positions of the caller cannot follow a prompt that shrinks."""
        positions = inputs.get("position_ids")
        if inputs.get("attention_mask") is None and positions is not None and bool((positions.diff(dim=-1) != 1).any()):
            raise ValueError(
                "position_ids: got packed sequences with visual tokens to drop, expected positions that grow by 1, or "
                "an attention_mask; without one this model takes gaps for the starts of sequences"
            )

    def language_model_positions(self, positions: Tensor) -> Tensor:
        """Positions as ``forward`` takes them, from [R, B, L]."""
        return positions[0]

    # Without it a model of this kind takes gaps between positions for the starts of packed sequences.
    needs_mask: ClassVar[bool] = True

    @property
    def rope_deltas(self) -> Tensor | None:
        """int64 [B, 1], the distance from a row's number of tokens to its next position; state of some models."""
        return None

    @rope_deltas.setter
    def rope_deltas(self, deltas: Tensor | None) -> None:
        pass


def as_one_tensor(output: ModelOutput) -> ModelOutput:
    """The output with tokens [1, K, D] in place of a list, for models that read a tensor."""
    if isinstance(output["pooler_output"], Tensor):
        return output
    return type(output)(pooler_output=torch.cat(list(output["pooler_output"]))[None])


def take_rows(
    features: Sequence[Tensor], lengths: list[int], rows: Tensor | None, scale: Tensor | None
) -> list[Tensor]:
    """Features of the selected tokens, one [k, D] for every entry, from one [N, D] for every entry."""
    packed = torch.cat(list(features))
    if scale is not None:
        packed = packed * scale.to(packed.dtype)
    return list((packed if rows is None else packed[rows]).split(lengths))
