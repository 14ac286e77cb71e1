"""A prompt with pixels made into a compact prompt with its kept visual tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vs_kernels.baselines import Baseline, select_by_scores
from vs_kernels.integrations.transformers.compact_prompt import CompactPrompt, KeptTokens
from vs_kernels.integrations.transformers.families import Family
from vs_kernels.integrations.transformers.fixed_tokens import FixedTokens
from vs_kernels.integrations.transformers.request import SelectionRequest
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.ops.topk_mask import topk_mask
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
        lengths: by modality, tokens of every image, tile or video.
        prompt: the compact prompt; None where nothing was dropped and the columns are those of the full one.
    """

    inputs: dict[str, Any]
    selections: dict[str, Selection]
    lengths: dict[str, list[int]]
    prompt: CompactPrompt | None


def select_inputs(
    family: Family, selector: VisionTokenSelector | Baseline, request: SelectionRequest, inputs: dict[str, Any]
) -> Prefill:
    """Encode the pixels in ``inputs``, select, and drop the placeholders of what was dropped.

    Where nothing is dropped, at budget 1 or in a soft train mode, the model gets what it would have made itself:
    the same features with everything else as it came.

    Raises:
        ValueError: arguments that do not go together, or that cannot follow a prompt that shrinks.
    """
    _check_prompt(inputs)
    inputs = family.prepare(inputs)
    selections, features, lengths, kept = {}, {}, {}, []
    for modality, output in family.encode(inputs).items():
        items = family.tokens(output)
        lengths[modality] = of_items = [len(item) for item in items]
        selection = _select(family, selector, request, modality, items, inputs)
        ks = _kept_per_item(selection, of_items)
        selections[modality] = selection
        tokens, scale = list(selection.tokens.split(ks)), _scale_of_dropped(selection, selector)
        features[modality] = family.replace_tokens(output, tokens, selection.indices, scale)
        kept.append(KeptTokens(family.placeholders[modality], of_items, ks, selection.indices))

    prompt = None
    replaced = (*family.pixels.values(), *family.encoder_arguments)
    if any(tokens.ks != tokens.lengths for tokens in kept):
        inputs, prompt = _compact(family, inputs, kept)
        replaced += family.position_sources
    inputs = {name: value for name, value in inputs.items() if name not in replaced}
    return Prefill(inputs | {"mm_encoder_outputs": features}, selections, lengths, prompt)


def _select(
    family: Family,
    selector: VisionTokenSelector | Baseline,
    request: SelectionRequest,
    modality: str,
    items: list[Tensor],
    inputs: dict[str, Any],
) -> Selection:
    """The selection among the tokens of one modality, of which those that always stay are a part."""
    lengths = [len(item) for item in items]
    tokens = torch.cat(items) if len(items) > 1 else items[0]
    fixed = FixedTokens.of(tokens, lengths, family.always_kept(tokens))
    free_lengths = lengths if fixed is None else fixed.free_lengths
    placeholders = inputs["input_ids"] == family.placeholders[modality]
    plan = request.plan(selector, modality, free_lengths, len(placeholders), lambda: _rows_of(lengths, placeholders))
    free = tokens if fixed is None else tokens[fixed.free]
    scores = request.scores_of(modality, len(tokens))
    if scores is None:
        selection = selector(free, free_lengths, plan=plan)
    else:
        scores = scores.to(tokens.device, torch.float32)
        selection = select_by_scores(free, scores if fixed is None else scores[fixed.free], plan)
    if selector.pool == "call" and request.minimum > 1:
        selection = _with_minimum(selection, free, free_lengths, request.minimum)
    return selection if fixed is None else fixed.join(selection, tokens)


def _with_minimum(selection: Selection, tokens: Tensor, lengths: list[int], minimum: int) -> Selection:
    """The selection in one pool of several images, with at least ``minimum`` tokens of every image."""
    if selection.loss is not None:
        raise ValueError(f"minimum: got {minimum} with pool='call' in training, expected 1 or pool='image'")
    floor = SelectionPlan(lengths, [min(minimum, length) for length in lengths])
    scores = selection.scores.index_fill(0, topk_indices(selection.scores, floor), torch.inf)
    plan = SelectionPlan([sum(lengths)], [max(selection.plan.total_kept, floor.total_kept)])
    return select_by_scores(tokens, scores, plan)._replace(scores=selection.scores)


def _compact(family: Family, inputs: dict[str, Any], kept: list[KeptTokens]) -> tuple[dict[str, Any], CompactPrompt]:
    _check_compactable(inputs)
    input_ids = inputs["input_ids"]
    text_positions, positions = None, inputs.get("position_ids")
    if positions is None:
        positions = family.positions(inputs)
    else:
        family.check_positions(inputs)
        positions = (positions[None] if positions.dim() == 2 else positions).expand(-1, *input_ids.shape)
        if len(positions) == 4:
            text_positions, positions = positions[0], positions[1:]
    mask = inputs.get("attention_mask")
    if mask is None and family.needs_mask:
        mask = torch.ones_like(input_ids)
    prompt = CompactPrompt(input_ids, mask, positions, kept, text_positions)
    family.rope_deltas = prompt.rope_deltas
    inputs = inputs | {
        "input_ids": prompt.take(input_ids, family.pad_token_id),
        "attention_mask": prompt.attention_mask,
        "position_ids": family.language_model_positions(prompt.position_ids),
    }
    columns = dict.fromkeys(family.column_arguments, 0) | {"labels": IGNORED_LABEL}
    for name, padding in columns.items():
        if inputs.get(name) is not None:
            inputs[name] = prompt.take(inputs[name], padding)
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


def _scale_of_dropped(selection: Selection, selector: VisionTokenSelector | Baseline) -> Tensor | None:
    """[T, 1], what a train mode that drops nothing multiplies features by; None where it drops tokens."""
    if selection.indices is not None or isinstance(selector, Baseline):
        return None
    kept = topk_mask(selection.scores.detach(), selection.plan)
    if selection.probs is not None:
        hard_share = selector.hard_share if selector.train_mode == "blend" else 0.0
        return torch.lerp(selection.probs, kept.to(selection.probs.dtype), hard_share)[:, None]
    return torch.where(kept, 1.0, selector.dropped_scale)[:, None]


def _rows_of(lengths: list[int], placeholders: Tensor) -> list[int]:
    """The row of the batch that every image or video is in, by the placeholders, bool [B, L]."""
    ends = placeholders.sum(1).cumsum(0).tolist()
    rows, row, seen = [], 0, 0
    for length in lengths:
        seen += length
        while row < len(ends) - 1 and ends[row] < seen:
            row += 1
        rows.append(row)
    return rows


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
