"""A prompt with pixels made into a compact prompt with its kept visual tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vs_kernels.baselines import Baseline
from vs_kernels.integrations.transformers.compact_prompt import CompactPrompt, KeptTokens
from vs_kernels.integrations.transformers.families import QwenVL
from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection
from vs_kernels.selector import VisionTokenSelector

IGNORED_LABEL = -100

# They describe the columns of the full prompt in forms that are not followed when it shrinks.
FULL_PROMPT_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "shift_labels")


class Prefill(NamedTuple):
    """What a prefill runs on.

    Attributes:
        inputs: arguments of ``forward`` with features in place of pixels, in full or compact columns.
        selections: by modality.
        prompt: the compact prompt; None where nothing was dropped and the columns are those of the full one.
    """

    inputs: dict[str, Any]
    selections: dict[str, Selection]
    prompt: CompactPrompt | None


def select_inputs(
    family: QwenVL, selector: VisionTokenSelector | Baseline, budget: float | None, inputs: dict[str, Any]
) -> Prefill:
    """Encode the pixels in ``inputs``, select, and drop the placeholders of what was dropped.

    Where nothing is dropped, at budget 1 or in a soft train mode, the model gets what it would have made itself:
    the same features with everything else as it came.

    Raises:
        ValueError: arguments that do not go together, or that cannot follow a prompt that shrinks.
    """
    _check_prompt(inputs)
    if inputs.get("mm_token_type_ids") is None:
        inputs = inputs | {"mm_token_type_ids": family.token_types(inputs["input_ids"])}
    selections, features, kept = {}, {}, []
    for modality, output in family.encode(inputs).items():
        items = family.tokens(output)
        lengths = [len(item) for item in items]
        selection = selector(torch.cat(items), lengths, budget)
        ks = _kept_per_item(selection, lengths)
        selections[modality] = selection
        features[modality] = family.replace_tokens(output, list(selection.tokens.split(ks)))
        kept.append(KeptTokens(family.placeholders[modality], lengths, ks, selection.indices))

    prompt = None
    replaced = family.pixels
    if any(tokens.ks != tokens.lengths for tokens in kept):
        inputs, prompt = _compact(family, inputs, kept)
        replaced += family.position_sources
    inputs = {name: value for name, value in inputs.items() if name not in replaced}
    return Prefill(inputs | {"mm_encoder_outputs": features}, selections, prompt)


def _compact(family: QwenVL, inputs: dict[str, Any], kept: list[KeptTokens]) -> tuple[dict[str, Any], CompactPrompt]:
    _check_compactable(inputs)
    input_ids = inputs["input_ids"]
    text_positions, positions = None, inputs.get("position_ids")
    if positions is None:
        positions = family.positions(inputs)
    else:
        positions = (positions[None] if positions.dim() == 2 else positions).expand(-1, *input_ids.shape)
        if len(positions) == 4:
            text_positions, positions = positions[0], positions[1:]
    prompt = CompactPrompt(input_ids, inputs.get("attention_mask"), positions, kept, text_positions)
    family.rope_deltas = prompt.rope_deltas
    inputs = inputs | {
        "input_ids": prompt.take(input_ids, family.pad_token_id),
        "attention_mask": prompt.attention_mask,
        "position_ids": prompt.position_ids,
    }
    if inputs.get("labels") is not None:
        inputs["labels"] = prompt.take(inputs["labels"], IGNORED_LABEL)
    return inputs, prompt


def _kept_per_item(selection: Selection, lengths: list[int]) -> list[int]:
    """Kept tokens of every image or video."""
    if selection.indices is None:
        return lengths
    if selection.plan.lengths == tuple(lengths):
        return list(selection.plan.ks)
    # In a pool of several items only the device knows where the kept tokens are.
    bounds = SelectionPlan(lengths, lengths).cu_lengths(selection.indices.device)
    return torch.searchsorted(selection.indices, bounds).diff().tolist()


def _check_prompt(inputs: dict[str, Any]) -> None:
    if inputs.get("inputs_embeds") is not None:
        raise ValueError(
            "inputs_embeds: got it together with pixels, expected input_ids, whose placeholders are the places of "
            "the visual tokens"
        )
    if inputs.get("input_ids") is None:
        raise ValueError("input_ids: got None together with pixels, expected the prompt with its placeholders")
    cache = inputs.get("cache", inputs.get("past_key_values"))
    if cache is not None and (length := int(cache.get_seq_length())):
        raise ValueError(
            f"cache: got one of {length} tokens together with pixels, expected an empty one; "
            "give the whole prompt at once"
        )


def _check_compactable(inputs: dict[str, Any]) -> None:
    for name in FULL_PROMPT_ARGUMENTS:
        if inputs.get(name) is not None:
            raise ValueError(f"{name}: got it with visual tokens to drop, expected None")
    shape = list(inputs["input_ids"].shape)
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or list(mask.shape) != shape):
        got = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask: got {got}, expected a tensor {shape}, the shape of input_ids")
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep: got a tensor, expected an integer, as columns move when tokens are dropped")
