"""Decoding after selection: strategies, caches, lengths and streams, against the oracle of tests/oracle.py."""

import copy
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
    TWO_AND_ONE,
    WIDE,
    full_positions,
    make_selector,
    oracle_inputs,
)
from tiny_models import prompt, qwen2_5_vl
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.generation.streamers import BaseStreamer

from vs_kernels.integrations.transformers import SelectorHandle, attach_selector

pytestmark = pytest.mark.usefixtures("one_thread")
family, inputs = oracle.each_family, oracle.each_prompt


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
    ends_later = shortest | {"max_length": length + 6, "eos_token_id": int(never[0, length + 4])}
    sequences = model.generate(**inputs, **ends_later)
    assert sequences[0, length + 4] == ends_later["eos_token_id"], "min_length counts the dropped tokens"
    attached.detach()
    assert torch.equal(sequences, model.generate(**oracle_inputs(attached, inputs), **ends_later))


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
