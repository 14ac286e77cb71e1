"""Selection behind the encoder of a model in vLLM."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tp_group

from vs_kernels.integrations.vllm.encoder_batches import encoder_batches
from vs_kernels.integrations.vllm.positions import CHANNELS, ItemLayout, encode, provisional_positions, resolve
from vs_kernels.integrations.vllm.processing import LAYOUT_FIELDS, layout_fields
from vs_kernels.integrations.vllm.settings import SETTING, ServingSettings
from vs_kernels.ops.gather_tokens import gather_tokens
from vs_kernels.plan import SelectionPlan


class SelectingModel:
    """Goes ahead of vLLM's class of a model among the bases of a class; ``layout`` is what a model adds.

    Every image and every video is encoded, and selected from, by itself, as the encoder cache of vLLM keeps it.
    """

    # Adapters of the encoder count its tokens by placeholders, of which there are fewer here.
    supports_tower_connector_lora = False

    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        settings = ServingSettings(**getattr(self.config, SETTING))
        # In a tuple, so that vLLM does not look for its weights in the checkpoint.
        self._selector = (settings.load().to(vllm_config.device_config.device),)
        self._tokens_at_once = vllm_config.scheduler_config.max_num_encoder_input_tokens

    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        """The layout of one image or video, from its fields without a batch dimension."""
        raise NotImplementedError

    def text_embeddings(self, token_ids: list[int], like: Tensor) -> Tensor:
        """[L, D], rows for the tokens of an item that are not visual, as wide as the rows of the encoder."""
        raise NotImplementedError

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        # Checkpoints in the published layout hold the scorer among the weights of the model.
        return super().load_weights(  # type: ignore[misc]
            (name, tensor) for name, tensor in weights if ".importance_scorer." not in f".{name}"
        )

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        items = []
        for feature in mm_features:
            place, layout = feature.mm_position, self.layout(feature.modality, layout_fields(feature.data))
            items.append((place.offset, place.length, layout.extent))
        return provisional_positions(len(input_tokens), items)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        rows = [item[:, :-CHANNELS] for item in multimodal_embeddings]
        if rows:
            channels = [item[:, -CHANNELS:] for item in multimodal_embeddings]
            placeholders = (self.config.image_token_id, self.config.video_token_id)
            mrope_positions = resolve(input_ids, placeholders, mrope_positions, channels, num_computed_tokens)
        # A prompt ends on text, which has the largest position.
        return rows, mrope_positions, int(mrope_positions[0, -1]) + 1 - mrope_positions.shape[1]

    def embed_multimodal(self, **fields: Any) -> list[Tensor]:
        merge = self.config.vision_config.spatial_merge_size
        rows: list[Tensor] = []
        for modality, batch in encoder_batches(fields, self._tokens_at_once, merge):
            value = self._parse_and_validate_multimodal_inputs(**batch)[modality]  # type: ignore[attr-defined]
            features = getattr(self, f"_process_{modality}_input")(value)
            rows += self._select(modality, value, list(features), batch[f"{modality}_kept"].flatten().tolist())
        return rows

    def _select(self, modality: str, value: Any, features: list[Tensor], ks: list[int]) -> list[Tensor]:
        """The kept rows of every item [k + text, D + CHANNELS], from all of its rows [N, D]."""
        plan = SelectionPlan([len(item) for item in features], ks)
        packed = torch.cat(features)
        tokens = packed[:, : self.config.get_text_config().hidden_size]
        indices = self._selector[0](tokens, plan.lengths, plan=plan).indices
        group = get_tp_group()
        if group.world_size > 1:
            # Every rank encodes for itself; a difference in the last bit must not make them choose differently.
            indices = group.broadcast(indices, src=0)
        rows = []
        starts = plan.cu_lengths(packed.device)
        kept = gather_tokens(packed, indices).split(ks)
        for number, (of_item, item_rows) in enumerate(zip(indices.split(ks), kept, strict=True)):
            layout = self.layout(modality, _item(value, number))
            columns, source = layout.kept_columns(of_item - starts[number])
            if text := layout.text_ids:
                item_rows = torch.cat([item_rows, self.text_embeddings(text, item_rows)])[source]
            positions = layout.positions.to(columns.device)[:, columns]
            order = torch.arange(len(columns), device=columns.device)
            channels = encode(torch.cat([positions, order[None]]), item_rows.dtype)
            rows.append(torch.cat([item_rows, channels], dim=1))
        return rows


def _item(value: Any, number: int) -> dict[str, Any]:
    """The fields of one item that say how it is laid out, of those of a batch."""
    return {name: value[name][number] for name in LAYOUT_FIELDS if value.get(name) is not None}
