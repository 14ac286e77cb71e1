"""Selection inside of transformers models, in one call of forward.

The oracle is the unpatched model on the full prompt, told by its attention mask to ignore the dropped tokens and by
position_ids to leave the others where they are: it must agree with the compact prompt to rounding.
"""

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import (
    ATTENTIONS,
    LOGIT_TOLERANCE,
    PROMPTS,
    SMALL,
    TALL,
    TWO_AND_ONE,
    WIDE,
    assert_matches_oracle,
    full_positions,
    kept_columns,
    make_selector,
    oracle_inputs,
)
from skimage import data as photos
from tiny_models import IMAGE, VIDEO, prompt, qwen2_vl
from torch import Tensor
from transformers import PreTrainedModel, Qwen2VLImageProcessor
from transformers.utils import ModelOutput

from vs_kernels.baselines import Baseline, DivPrune, TokenNorm, VisionZip
from vs_kernels.integrations.transformers import SelectorHandle, attach_selector

pytestmark = pytest.mark.usefixtures("one_thread")
family, inputs = oracle.each_family, oracle.each_prompt


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_budget_one_is_bit_identical(family: Callable[..., PreTrainedModel], attention: str) -> None:
    model, inputs = family(attention), prompt(*TWO_AND_ONE)
    logits = model(**inputs).logits
    sequences = model.generate(**inputs, max_new_tokens=8)
    with attach_selector(model, make_selector(), budget=1.0) as handle:
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, max_new_tokens=8), sequences)
        assert handle.last_selection["image"].plan.total_kept == 16 + 24 + 18


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_dropped_tokens_count_as_masked(
    family: Callable[..., PreTrainedModel], attention: str, budget: float, inputs: dict[str, Tensor]
) -> None:
    model = family(attention)
    with attach_selector(model, make_selector(), budget) as handle:
        logits = model(**inputs).logits
        compact = handle.last_prompt
    keep = kept_columns(handle, inputs)
    assert [row[row >= 0].tolist() for row in compact.columns] == [row.nonzero().flatten().tolist() for row in keep]
    assert_matches_oracle(logits, model(**oracle_inputs(handle, inputs)).logits, compact)


def test_text_only_is_untouched(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt([9], [5])
    attached.detach()
    logits, sequences = model(**inputs).logits, model.generate(**inputs, max_new_tokens=5)
    with attach_selector(model, make_selector()) as handle:
        model(**prompt(*TWO_AND_ONE))
        assert handle.last_selection and handle.last_prompt
        assert torch.equal(model(**inputs).logits, logits)
        assert handle.last_selection == {} and handle.last_prompt is None and handle.loss is None
        model(**prompt(*TWO_AND_ONE))
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), sequences)
        assert handle.last_selection == {} and handle.last_prompt is None


def test_kept_tokens_keep_their_positions_and_number(
    attached: SelectorHandle, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attached.model
    seen: dict[str, Any] = {}
    model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**inputs)
    positions, compact = full_positions(model, inputs), attached.last_prompt
    for row, keep in enumerate(kept_columns(attached, inputs)):
        k = int(keep.sum())
        assert torch.equal(seen["position_ids"][:, row, compact.length - k :], positions[:, row, keep])
        next_position = positions[:, row, inputs["attention_mask"][row].bool()].max() + 1
        assert model.model.rope_deltas[row] == next_position - k
    visual = sum(((inputs["input_ids"] == token).sum(1) for token in (IMAGE, VIDEO)), torch.tensor(0))
    kept_visual = sum(selection.plan.total_kept for selection in attached.last_selection.values())
    text = inputs["attention_mask"].sum() - visual.sum()
    assert seen["attention_mask"].sum() == text + kept_visual
    assert seen["inputs_embeds"].shape[1] == compact.length < compact.full_length


def test_one_pool_for_all_images_of_a_call() -> None:
    inputs = prompt(*PROMPTS["image and video"]["rows"])
    model = qwen2_vl()
    with attach_selector(model, make_selector(pool="call"), budget=0.3) as handle:
        logits, compact = model(**inputs).logits, handle.last_prompt
        beams = model.generate(**inputs, max_new_tokens=5, num_beams=2)
    assert handle.last_selection["image"].plan.lengths == (16 + 24 + 18,)
    expected = oracle_inputs(handle, inputs)
    assert_matches_oracle(logits, model(**expected).logits, compact)
    assert torch.equal(beams, model.generate(**expected, max_new_tokens=5, num_beams=2))


@pytest.mark.parametrize("baseline", [DivPrune(0.3), VisionZip(TokenNorm().score, 0.3)], ids=["kept", "merged"])
def test_a_baseline_drives_the_selection(model: PreTrainedModel, baseline: Baseline) -> None:
    inputs = prompt(*TWO_AND_ONE)
    with attach_selector(model, baseline) as handle:
        logits, compact, selection = model(**inputs).logits, handle.last_prompt, handle.last_selection["image"]
    assert selection.plan.ks == (4, 7, 5) and compact.length == 5 + 3 + 4 + 2 * 2 + 4 + 7
    items = torch.cat(model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
    features = items.index_copy(0, selection.indices, selection.tokens)
    oracle = oracle_inputs(handle, inputs) | {"mm_encoder_outputs": {"image": ModelOutput(pooler_output=[features])}}
    del oracle["pixel_values"]
    assert_matches_oracle(logits, model(**oracle).logits, compact)


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_positions_of_the_caller(attached: SelectorHandle, rows: int) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    positions = full_positions(model, inputs)
    expected = model(**inputs).logits
    shapes = {
        2: (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0),
        3: positions,
        4: torch.cat([(inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)[None], positions]),
    }
    logits = model(**inputs, position_ids=shapes[rows]).logits
    if rows == 2:
        attached.detach()
        full = model(**oracle_inputs(attached, inputs) | {"position_ids": shapes[rows]}).logits
        assert_matches_oracle(logits, full, attached.last_prompt)
    else:
        assert torch.equal(logits, expected)


def test_packed_sequences_stay_apart(attached: SelectorHandle) -> None:
    model = attached.model
    first, second = prompt([5, SMALL, 3, WIDE, 4], seed=1), prompt([6, TALL, 2], seed=2)
    apart = torch.cat([model(**inputs).logits for inputs in (first, second)], dim=1)
    positions = [
        torch.cat([torch.arange(inputs["input_ids"].shape[1]).expand(1, 1, -1), full_positions(model, inputs)])
        for inputs in (first, second)
    ]
    packed = {name: torch.cat([first[name], second[name]]) for name in ("pixel_values", "image_grid_thw")}
    packed["input_ids"] = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    logits = model(**packed, position_ids=torch.cat(positions, dim=-1), use_cache=False).logits
    torch.testing.assert_close(logits, apart, **LOGIT_TOLERANCE)


def test_left_out_arguments(attached: SelectorHandle, family: Callable[..., PreTrainedModel]) -> None:
    inputs = prompt([5, SMALL, 3, WIDE, 4])
    least = {name: inputs[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    model = family()
    for budget in (1.0, 0.5):
        with attach_selector(model, make_selector(), budget):
            assert torch.equal(model(**least).logits, model(**inputs).logits)
            sequences = model.generate(least.pop("input_ids"), **least, max_new_tokens=4)
            assert torch.equal(sequences, model.generate(**inputs, max_new_tokens=4))
            least["input_ids"] = inputs["input_ids"]


def test_rows_that_selection_makes_unequal_need_no_mask(attached: SelectorHandle) -> None:
    inputs = prompt([5, SMALL, 20], [5, WIDE, 12])
    logits, sequences = attached.model(**inputs).logits, attached.model.generate(**inputs, max_new_tokens=4)
    assert inputs.pop("attention_mask").all() and (attached.last_prompt.columns < 0).any()
    assert torch.equal(attached.model(**inputs).logits, logits)
    assert torch.equal(attached.model.generate(**inputs, max_new_tokens=4), sequences)


def test_a_real_photo_through_the_image_processor(family: Callable[..., PreTrainedModel]) -> None:
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=280 * 280)
    photo = processor(images=[photos.astronaut()], return_tensors="pt")
    t, h, w = photo["image_grid_thw"][0].tolist()
    inputs = prompt([4, ("image", t, h // 2, w // 2), 3]) | dict(photo)
    model = family()
    sequences = model.generate(**inputs, max_new_tokens=4)
    with attach_selector(model, make_selector(), budget=1.0) as handle:
        assert torch.equal(model.generate(**inputs, max_new_tokens=4), sequences)
        handle.budget = 0.2
        logits, compact = model(**inputs).logits, handle.last_prompt
        assert handle.last_selection["image"].plan.ks == (int(t * h * w // 4 * 0.2),)
    assert_matches_oracle(logits, model(**oracle_inputs(handle, inputs)).logits, compact)
