"""Prompts with the placeholders of kept tokens alone; their number follows from the grid and the budget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from vs_kernels.integrations.vllm.positions import ItemLayout
from vs_kernels.integrations.vllm.settings import SETTING, ServingSettings, request_budget
from vs_kernels.plan import SelectionPlan

MODALITIES = ("image", "video")
LAYOUT_FIELDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "timestamps")


def layout_fields(item: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one processed item that say how it is laid out in the prompt."""
    return {name: item[name].data for name in LAYOUT_FIELDS if name in item}


class SelectingProcessor:
    """Goes ahead of vLLM's processor of a model among the bases of a class; ``layout`` is what a model adds.

    A request may bring a budget of its own: ``mm_processor_kwargs={"budget": 0.5}``.
    """

    info: Any

    def layout(self, modality: str, item: Mapping[str, Any]) -> ItemLayout:
        """The layout of one image or video, from its fields."""
        raise NotImplementedError

    @property
    def settings(self) -> ServingSettings:
        return ServingSettings(**getattr(self.info.get_hf_config(), SETTING))

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        budget, hf_kwargs = request_budget(hf_kwargs, self.settings)
        data = super()._apply_hf_processor_main(mm_items, hf_kwargs)  # type: ignore[misc]
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        for modality in MODALITIES:
            grids = data.get(f"{modality}_grid_thw")
            if grids is not None:
                lengths = [size // merge**2 for size in grids.prod(-1).tolist()]
                data[f"{modality}_kept"] = torch.tensor(SelectionPlan.from_budget(lengths, budget).ks)
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> dict[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        kept = {f"{name}_kept": MultiModalFieldConfig.batched(name, keep_on_cpu=True) for name in MODALITIES}
        return {**fields, **kept}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        _, options = request_budget(hf_processor_mm_kwargs, self.settings)
        updates = super()._get_prompt_updates(mm_items, options, out_mm_kwargs)  # type: ignore[misc]
        return [
            replace(update, replacement=partial(self._placeholders, out_mm_kwargs, update.modality))
            for update in updates
        ]

    def _placeholders(self, items: Any, modality: str, index: int) -> list[int]:
        """Placeholders ahead of the other tokens of the item, so that an item begins with a placeholder.

        The order is of no matter: the encoder brings embeddings and positions for all of them.
        """
        item = items[modality][index]
        layout = self.layout(modality, layout_fields(item))
        placeholder = getattr(self.info.get_hf_config(), f"{modality}_token_id")
        return [placeholder] * int(item[f"{modality}_kept"].data) + layout.text_ids

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Hashes under which images and their tokens are cached: another budget or scorer is another entry."""
        budget, options = request_budget(inputs.hf_processor_mm_kwargs, self.settings)
        options |= {"budget": budget, "selector": self.settings.selector, "digest": self.settings.digest}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))  # type: ignore[misc]

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        ends = [item.offset + item.length for items in result["mm_placeholders"].values() for item in items]
        if len(result["prompt_token_ids"]) in ends:
            raise ValueError("prompt: got one that ends on visual tokens, expected text behind them")
        return result


class TextBehind:
    """Goes ahead of a builder of dummy inputs: its prompts do not end on visual tokens."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return super().get_dummy_text(mm_counts) + "."  # type: ignore[misc]
