"""Selection inside transformers models.

The oracle is the unpatched model on the full prompt, told by its attention mask to ignore the dropped tokens and by
position_ids to leave the others where they are: it must agree with the compact prompt to rounding.
"""

import copy
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from skimage import data as photos
from tiny_models import HIDDEN_SIZE, IMAGE, VIDEO, prompt, qwen2_5_vl, qwen2_vl
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, Qwen2VLImageProcessor, StaticCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.baselines import Baseline, DivPrune, TokenNorm, VisionZip
from vs_kernels.integrations.transformers import CompactPrompt, SelectorHandle, attach_selector

FAMILIES = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}
ATTENTIONS = ("eager", "sdpa")
LOGIT_TOLERANCE = {"rtol": 0, "atol": 1e-5}

SMALL, WIDE, TALL, CLIP = ("image", 1, 4, 4), ("image", 1, 4, 6), ("image", 1, 6, 3), ("video", 3, 4, 4)
TWO_AND_ONE = ([5, SMALL, 3, WIDE, 4], [6, TALL, 2])
PROMPTS: dict[str, dict[str, Any]] = {
    "two images and one": {"rows": TWO_AND_ONE},
    "right padded": {"rows": TWO_AND_ONE, "side": "right"},
    "one row": {"rows": ([3, SMALL, 2],)},
    "a row without images": {"rows": ([5, SMALL, 3], [7], [2, WIDE, 2])},
    "videos": {"rows": ([5, CLIP, 3, CLIP, 2], [4, CLIP, 4])},
    "image and video": {"rows": ([5, SMALL, 3, CLIP, 4, WIDE, 2], [4, CLIP, 2], [3, TALL, 6])},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these tiny models do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    return FAMILIES[request.param]


@pytest.fixture(params=PROMPTS)
def inputs(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    spec = PROMPTS[request.param]
    return prompt(*spec["rows"], side=spec.get("side", "left"))


@pytest.fixture
def model() -> PreTrainedModel:
    return qwen2_5_vl()


@pytest.fixture
def attached(model: PreTrainedModel) -> Iterator[SelectorHandle]:
    with attach_selector(model, make_selector(), budget=0.5) as handle:
        yield handle


def make_selector(in_features: int = HIDDEN_SIZE, **options: Any) -> VisionTokenSelector:
    generator = torch.Generator().manual_seed(1)
    selector = VisionTokenSelector(ImportanceScorer(in_features), **options)
    for parameter in selector.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return selector.eval()


def kept_columns(handle: SelectorHandle, inputs: dict[str, Tensor]) -> Tensor:
    """bool [B, L]: attended to, and not a dropped placeholder."""
    keep = inputs["attention_mask"].bool()
    for modality, placeholder in (("image", IMAGE), ("video", VIDEO)):
        if modality in handle.last_selection:
            selection = handle.last_selection[modality]
            chosen = torch.zeros(selection.plan.total_tokens, dtype=torch.bool)
            chosen[selection.indices] = True
            keep[inputs["input_ids"] == placeholder] = chosen
    return keep


def full_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model.model.get_rope_index(**inputs)[0]


def oracle_inputs(handle: SelectorHandle, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {
        "attention_mask": kept_columns(handle, inputs).long(),
        "position_ids": full_positions(handle.model, inputs),
    }


def assert_matches_oracle(logits: Tensor, full_logits: Tensor, compact: CompactPrompt) -> None:
    """Compact logits [B, L', V] against those of the full prompt, [B, L, V]."""
    kept = compact.columns >= 0
    expected = full_logits.gather(1, compact.columns.clamp_min(0)[..., None].expand(-1, -1, logits.shape[-1]))
    torch.testing.assert_close(logits[kept], expected[kept], **LOGIT_TOLERANCE)


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 16},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
        {"num_beams": 2, "do_sample": True},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=str,
)
def test_generate_matches_oracle(family: Callable[..., PreTrainedModel], options: dict[str, Any]) -> None:
    model, inputs = family(), prompt(*PROMPTS["image and video"]["rows"])
    oracle_options = {k: v for k, v in options.items() if k not in ("cache_implementation", "prefill_chunk_size")}
    with attach_selector(model, make_selector(), budget=0.5) as handle:
        torch.manual_seed(0)
        result = model.generate(**inputs, max_new_tokens=8, **options)
        assert not handle.last_selection["image"].tokens.requires_grad
    torch.manual_seed(0)
    expected = model.generate(**oracle_inputs(handle, inputs), max_new_tokens=8, **oracle_options)
    if "return_dict_in_generate" in options:
        torch.testing.assert_close(result.scores, expected.scores, **LOGIT_TOLERANCE)
        result, expected = result.sequences, expected.sequences
    assert torch.equal(result, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_generate_matches_oracle_for_every_prompt(attention: str, inputs: dict[str, Tensor]) -> None:
    if not inputs["attention_mask"][:, -1].all():
        # The unpatched model cannot go on from padding; the compact prompt has it on the left.
        left = prompt(*PROMPTS["right padded"]["rows"])
        model = qwen2_5_vl(attention)
        with attach_selector(model, make_selector(), budget=0.2):
            new = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
            assert torch.equal(new, model.generate(**left, max_new_tokens=6)[:, left["input_ids"].shape[1] :])
        return
    model = qwen2_5_vl(attention)
    with attach_selector(model, make_selector(), budget=0.2) as handle:
        sequences = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(sequences, model.generate(**oracle_inputs(handle, inputs), max_new_tokens=6))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("budget", [0.2, 0.5])
@pytest.mark.parametrize("with_mask", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_cached_logits_equal_uncached(
    family: Callable[..., PreTrainedModel], attention: str, budget: float, with_mask: bool, static: bool
) -> None:
    model = family(attention)
    inputs = prompt(*TWO_AND_ONE)
    if not with_mask:
        # As many tokens in every row, so that only selection makes them differ.
        inputs = prompt([5, SMALL, 3, WIDE, 6], [7, WIDE, 7, SMALL], [40, SMALL])
        assert inputs.pop("attention_mask").all()
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=90) if static else DynamicCache()
    with torch.no_grad(), attach_selector(model, make_selector(), budget):
        output = model(**inputs, past_key_values=cache, use_cache=True)
        full = dict(inputs)
        for _ in range(4):
            token = output.logits[:, -1:].argmax(-1)
            ones = torch.ones_like(token)
            full["input_ids"] = torch.cat([full["input_ids"], token], 1)
            full["mm_token_type_ids"] = torch.cat([full["mm_token_type_ids"], 0 * token], 1)
            decoding = {"input_ids": token, "past_key_values": output.past_key_values}
            if with_mask:
                full["attention_mask"] = torch.cat([full["attention_mask"], ones], 1)
                decoding["attention_mask"] = full["attention_mask"]
            output = model(**decoding)
            torch.testing.assert_close(output.logits[:, -1], model(**full).logits[:, -1], **LOGIT_TOLERANCE)


def test_decoding_accepts_several_tokens_and_positions_of_the_full_prompt(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    with torch.no_grad():
        first, second = model(**inputs).past_key_values, model(**inputs).past_key_values
        follow = torch.tensor([[7, 8, 9], [5, 6, 7]])
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(follow)], 1)
        expected = model(input_ids=follow, attention_mask=mask, past_key_values=first).logits
        positions = full_positions(model, inputs).amax((0, 2))[:, None] + torch.arange(1, 4)
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": copy.deepcopy(second)}
        assert torch.equal(model(input_ids=follow, **given).logits, expected)


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


@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask", "eval"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_training(mode: str, side: str) -> None:
    model, inputs = qwen2_5_vl(), prompt(*TWO_AND_ONE, side=side)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    training = mode != "eval"
    selector = make_selector(train_mode=mode if training else "soft").train(training)
    with attach_selector(model, selector, budget=0.5) as handle:
        output = model(**inputs, labels=labels)
        gathered = mode in ("straight_through_gather", "eval")
        assert (handle.last_prompt is not None) == gathered
        columns = handle.last_prompt.length if gathered else inputs["input_ids"].shape[1]
        assert output.logits.shape[1] == columns
        shifted = labels if handle.last_prompt is None else handle.last_prompt.take(labels, -100)
        expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), shifted[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)
        assert output.loss.isfinite() and (handle.loss is not None) == training
        (output.loss + handle.loss if training else output.loss).backward()
    gradient = selector.scorer.q_proj.weight.grad
    assert (gradient is not None and bool(gradient.any())) == training
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_model_gradient_reaches_the_scorer_without_the_selection_loss(model: PreTrainedModel) -> None:
    inputs = prompt(*TWO_AND_ONE)
    for mode in ("soft", "straight_through_gather", "straight_through_mask"):
        selector = make_selector(train_mode=mode).train()
        with attach_selector(model, selector, budget=0.5):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert selector.scorer.k_proj.weight.grad.abs().sum() > 0


def test_labels_follow_their_tokens(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    after_text = nn.functional.pad(inputs["mm_token_type_ids"][:, :-1] == 0, (1, 0))
    ignored = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE) | ~after_text
    ignored[:, :1] = True
    first = inputs["attention_mask"].argmax(1)
    ignored[torch.arange(2), first] = True
    labels = inputs["input_ids"].masked_fill(ignored, -100)
    loss = model(**inputs, labels=labels).loss
    attached.detach()
    expected = model(**oracle_inputs(attached, inputs), labels=labels).loss
    torch.testing.assert_close(loss, expected, **LOGIT_TOLERANCE)


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


def test_forward_takes_positional_arguments_and_keeps_its_signature(model: PreTrainedModel) -> None:
    inputs = prompt(*TWO_AND_ONE)
    signatures = [inspect.signature(model.forward), inspect.signature(model.generate)]
    with attach_selector(model, make_selector(), budget=0.5):
        assert [inspect.signature(model.forward), inspect.signature(model.generate)] == signatures
        expected = model(**inputs).logits
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        assert torch.equal(model(ids, mask, **inputs).logits, expected)
        assert torch.equal(model(ids, mask, **inputs, return_dict=False)[0], expected)
        assert torch.equal(model(ids, mask, **inputs, logits_to_keep=2).logits, expected[:, -2:])
        with pytest.raises(TypeError, match="multiple values for keyword argument 'input_ids'"):
            model(ids, mask, input_ids=ids, **inputs)


def test_lengths_count_the_full_prompt(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    length = inputs["input_ids"].shape[1]
    never = model.generate(**inputs, max_length=length + 6, eos_token_id=None)
    assert never.shape[1] == length + 6
    assert torch.equal(never[:, :length], inputs["input_ids"])
    config = GenerationConfig(max_length=length + 3, eos_token_id=None, pad_token_id=0)
    assert torch.equal(model.generate(**inputs, generation_config=config), never[:, : length + 3])
    assert config.max_length == length + 3
    model.generation_config.max_length = length + 4
    assert torch.equal(model.generate(**inputs, eos_token_id=None), never[:, : length + 4])
    model.generation_config.max_length = None
    with pytest.warns(UserWarning, match="model-agnostic default"):
        assert model.generate(**inputs, eos_token_id=None).shape[1] == length + 20
    end = int(never[0, length])
    shortest = {"min_length": length + 3, "max_length": length + 5, "eos_token_id": end}
    assert (model.generate(**inputs, **shortest)[0, length : length + 3] != end).all()


def test_streamer_gets_the_full_prompt(attached: SelectorHandle) -> None:
    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.pieces.append(value)

        def end(self) -> None:
            self.ended = True

    inputs, streamer = prompt([5, SMALL, 3, WIDE, 4]), Recorder()
    sequences = attached.model.generate(**inputs, max_new_tokens=5, streamer=streamer)
    assert streamer.ended and torch.equal(streamer.pieces[0], inputs["input_ids"])
    assert torch.equal(torch.cat([streamer.pieces[0][0], *streamer.pieces[1:]]), sequences[0])


@pytest.mark.parametrize("owner", ["caller", "generate"])
def test_generate_hands_on_a_cache_that_forward_continues(attached: SelectorHandle, owner: str) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    if owner == "caller":
        cache = DynamicCache()
        sequences = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, past_key_values=cache)
    else:
        result = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
        cache, sequences = result.past_key_values, result.sequences
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    with torch.no_grad():
        logits = model(input_ids=sequences[:, -1:], attention_mask=mask, past_key_values=cache).logits
        types = nn.functional.pad(inputs["mm_token_type_ids"], (0, 4))
        full = inputs | {"input_ids": sequences, "attention_mask": mask, "mm_token_type_ids": types}
        torch.testing.assert_close(logits[:, -1], model(**full).logits[:, -1], **LOGIT_TOLERANCE)
    with pytest.raises(ValueError, match=r"^cache: got that of a prompt that lost visual tokens"):
        model.generate(sequences, attention_mask=mask, past_key_values=cache)


def test_an_emptied_cache_starts_anew(attached: SelectorHandle) -> None:
    model, inputs, text = attached.model, prompt(*TWO_AND_ONE), prompt([9], [7])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=90)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        cache.reset()
        sequences = model.generate(**text, max_new_tokens=5, past_key_values=cache)
        assert torch.equal(sequences, model.generate(**text, max_new_tokens=5))


def test_budget_of_the_handle(attached: SelectorHandle) -> None:
    inputs = prompt([3, ("image", 1, 10, 10), 2])
    kept = {}
    for budget in (0.5, 0.2, 1.0, None):
        attached.budget = budget
        attached.model(**inputs)
        kept[budget] = attached.last_selection["image"].plan.total_kept
    assert kept == {0.5: 50, 0.2: 20, 1.0: 100, None: 20}


@pytest.mark.parametrize("before", [None, torch.tensor([[3]])], ids=["no deltas", "deltas"])
def test_detach_restores_the_model(model: PreTrainedModel, before: Tensor | None) -> None:
    model.model.rope_deltas = before
    attributes, state = dict(vars(model)), set(model.state_dict())
    handle = attach_selector(model, make_selector(), budget=0.5)
    assert set(model.state_dict()) == state
    model.generate(**prompt(*TWO_AND_ONE), max_new_tokens=2)
    handle.detach()
    handle.detach()
    assert vars(model).keys() == attributes.keys()
    assert all(vars(model)[name] is value for name, value in attributes.items())
    assert model.forward.__func__ is type(model).forward and model.generate.__func__ is type(model).generate
    assert model.model.rope_deltas is before
    with attach_selector(model, make_selector()) as second:
        handle.detach()
        assert model(**prompt([3, SMALL, 2])).logits.shape[1] < 3 + 18 + 2
        assert second.last_prompt is not None
    assert "forward" not in vars(model)


def test_detach_restores_a_forward_of_another_tool(model: PreTrainedModel) -> None:
    calls = []
    original = model.forward
    model.forward = lambda *args, **kwargs: calls.append(kwargs) or original(*args, **kwargs)
    other = model.forward
    with attach_selector(model, make_selector(), budget=0.5):
        model(**prompt(*TWO_AND_ONE))
    assert model.forward is other and "mm_encoder_outputs" in calls[0]
    assert not {"pixel_values", "image_grid_thw", "mm_token_type_ids"} & calls[0].keys()


def test_an_attached_model_saves_as_it_is(attached: SelectorHandle, tmp_path: Path) -> None:
    attached.model.save_pretrained(tmp_path)
    loaded, inputs = type(attached.model).from_pretrained(tmp_path), prompt(*TWO_AND_ONE)
    attached.detach()
    assert torch.equal(loaded(**inputs).logits, attached.model(**inputs).logits)


def test_copies_select_for_themselves(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    expected = model(**inputs).logits
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.lm_head.weight)
    assert torch.equal(twin(**inputs).logits, torch.zeros_like(expected))
    assert torch.equal(model(**inputs).logits, expected)


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


# The faults of the published implementation, by their numbers in reference-behaviour.md.


def test_fault_1_text_only_and_inputs_embeds(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt([6])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(**inputs).logits)
    new = model.generate(inputs_embeds=embeds, max_new_tokens=3)
    assert torch.equal(new, model.generate(**inputs, max_new_tokens=3)[:, 6:])


def test_fault_2_rows_of_a_batch_select_for_themselves(attached: SelectorHandle) -> None:
    model = attached.model
    rows = [prompt(row, seed=seed) for seed, row in enumerate(TWO_AND_ONE)]
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {
        name: torch.cat([nn.functional.pad(row[name], (length - row[name].shape[1], 0)) for row in rows])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    } | {name: torch.cat([row[name] for row in rows]) for name in ("pixel_values", "image_grid_thw")}
    together = model(**batch).logits[:, -1]
    alone = torch.cat([model(**row).logits[:, -1] for row in rows])
    torch.testing.assert_close(together, alone, **LOGIT_TOLERANCE)


def test_fault_3_image_and_video_in_one_prompt(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt([5, CLIP, 3, SMALL, 4, CLIP, 2])
    inputs["second_per_grid_ts"] = torch.tensor([1.0, 2.0])
    model(**inputs)
    assert {name: selection.plan.lengths for name, selection in attached.last_selection.items()} == {
        "image": (16,),
        "video": (48, 48),
    }
    columns = attached.last_prompt.columns[0]
    assert torch.equal(attached.last_prompt.position_ids[:, 0], full_positions(model, inputs)[:, 0, columns])


def test_fault_4_text_between_videos_stays(attached: SelectorHandle) -> None:
    inputs = prompt([5, CLIP, 3, CLIP, 4, CLIP, 2])
    attached.model(**inputs)
    columns = attached.last_prompt.columns[0]
    text = (inputs["input_ids"][0] != VIDEO).nonzero().flatten()
    assert set(text.tolist()) <= set(columns.tolist())
    assert len(columns) == len(text) + 3 * 24


@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask"])
def test_fault_5_training_on_video(mode: str) -> None:
    model, inputs = qwen2_5_vl(), prompt([5, CLIP, 3, CLIP, 4], [2, CLIP, 2])
    selector = make_selector(train_mode=mode).train()
    with attach_selector(model, selector, budget=0.2) as handle:
        (model(**inputs, labels=inputs["input_ids"]).loss + handle.loss).backward()
    assert selector.scorer.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("image", [("image", 1, 1, 1), ("image", 1, 2, 2), SMALL])
@pytest.mark.parametrize("budget", [0.2, 1.0])
@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask", "eval"])
def test_fault_6_extreme_budgets_and_tiny_images(image: tuple[Any, ...], budget: float, mode: str) -> None:
    model, inputs = qwen2_5_vl(), prompt([5, image, 3])
    selector = make_selector(train_mode="soft" if mode == "eval" else mode).train(mode != "eval")
    with attach_selector(model, selector, budget):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        model.generate(**inputs, max_new_tokens=2)
    assert loss.isfinite()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_fault_9_the_cache_holds_the_compact_prompt(attention: str) -> None:
    model, inputs = qwen2_5_vl(attention), prompt(*TWO_AND_ONE)
    masks = []
    with attach_selector(model, make_selector(), budget=0.2) as handle:
        model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
        )
        result = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
        length = handle.last_prompt.length
        assert length == 5 + 3 + 4 + 2 * 2 + 3 + 4
        assert result.past_key_values.get_seq_length() == length + 3
        assert masks == [length, length + 1, length + 2, length + 3]


def test_errors_of_attach(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"^selector: got a scorer of tokens with 32 features, expected 64"):
        attach_selector(model, make_selector(32))
    with pytest.raises(TypeError, match=r"^model: got Linear, expected one of Qwen2VL.*, Qwen2_5_VLForCondit"):
        attach_selector(nn.Linear(2, 2), make_selector())
    with pytest.raises(ValueError, match=r"^budget: got 1.5"):
        attach_selector(model, make_selector(), budget=1.5)
    assert "forward" not in vars(model)
    with attach_selector(model, make_selector()), pytest.raises(ValueError, match=r"^model: got one with a selector"):
        attach_selector(model, make_selector())


def test_errors_of_calls(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    embeds = model.get_input_embeddings()(ids)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"^inputs_embeds: got it together with pixels"):
            call(**inputs, inputs_embeds=embeds)
        with pytest.raises(ValueError, match=r"^input_ids: got None together with pixels"):
            call(**inputs | {"input_ids": None})
        with pytest.raises(ValueError, match=r"^cache: got one of 4 tokens together with pixels"):
            call(**inputs, past_key_values=model(**prompt([4], [4])).past_key_values)
        with pytest.raises(ValueError, match=rf"^attention_mask: got shape \[2, 1, 9, 9\], expected .*\[2, {length}\]"):
            call(**inputs | {"attention_mask": torch.ones(2, 1, 9, 9)})
        with pytest.raises(ValueError, match=r"^input_ids: got rows with \[40, 17\] placeholders 90"):
            wrong = ids.clone()
            wrong[1, (ids[1] == IMAGE).nonzero()[0]] = 5
            call(**inputs | {"input_ids": wrong})
    for name, value in {"cu_seq_lens_q": torch.tensor([0, length]), "logits_to_keep": torch.tensor([0])}.items():
        with pytest.raises(ValueError, match=f"^{name}: got "):
            model(**inputs, **{name: value})
    cache = model(**inputs).past_key_values
    with pytest.raises(ValueError, match=rf"^attention_mask: got shape \[2, 9\], expected \[2, {length + 1}\]"):
        model(input_ids=ids[:, :1], attention_mask=torch.ones(2, 9), past_key_values=cache)
    positions = full_positions(model, prompt([5, SMALL, 20], [5, WIDE, 12])).new_zeros(4, 2, 43)
    equal = prompt([5, SMALL, 20], [5, WIDE, 12])
    del equal["attention_mask"]
    with pytest.raises(ValueError, match=r"^position_ids: got packed rows that keep \[35, 31\] tokens"):
        model(**equal, position_ids=positions)


def test_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["vs_kernels.integrations.transformers"]
    # transformers replaces itself while it is imported, so the name in this file may be an older object.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.18.1")
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.19.*found 5\.18\.1"):
        importlib.reload(module)


def test_the_package_does_not_import_transformers() -> None:
    code = "import sys, vs_kernels; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
