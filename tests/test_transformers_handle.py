"""attach_selector and its handle: signatures, detaching, saving, copies, errors."""

import copy
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import (
    SMALL,
    TWO_AND_ONE,
    WIDE,
    full_positions,
    make_selector,
)
from tiny_models import IMAGE, prompt
from torch import Tensor, nn
from transformers import PreTrainedModel

from vs_kernels.integrations.transformers import SelectorHandle, attach_selector

pytestmark = pytest.mark.usefixtures("one_thread")


def test_budget_of_the_handle(attached: SelectorHandle) -> None:
    inputs = prompt([3, ("image", 1, 10, 10), 2])
    kept = {}
    for budget in (0.5, 0.2, 1.0, None):
        attached.budget = budget
        attached.model(**inputs)
        kept[budget] = attached.last_selection["image"].plan.total_kept
    assert kept == {0.5: 50, 0.2: 20, 1.0: 100, None: 20}


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
