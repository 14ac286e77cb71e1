"""Every model family, and what a call may ask of the selection. ``python -m bench families`` runs the whole matrix."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bench import family_checks as checks
from bench.suites import families as suite
from bench.tiny_families import FAMILIES, HIDDEN_SIZE, IMAGE
from vs_kernels import SelectionPlan
from vs_kernels.baselines import TokenNorm
from vs_kernels.integrations.transformers import Family, attach_selector, families, register_family

MANY = suite.MANY
ADAPTERS = Path(__file__).parent.parent / "docs" / "adapters.md"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> checks.Subject:
    return checks.Subject(FAMILIES[request.param])


@pytest.fixture(scope="module")
def llava() -> checks.Subject:
    return checks.Subject(FAMILIES["LLaVA"])


@pytest.fixture(scope="module")
def onevision() -> checks.Subject:
    return checks.Subject(FAMILIES["LLaVA-OneVision"])


def test_forward(subject: checks.Subject) -> None:
    checks.check_forward(subject, *MANY)


def test_cached_equals_uncached(subject: checks.Subject) -> None:
    checks.check_cached(subject, MANY, static=False)


def test_greedy(subject: checks.Subject) -> None:
    checks.check_generate(subject, MANY)


def test_text_only(subject: checks.Subject) -> None:
    checks.check_text_only(subject)


def test_training(subject: checks.Subject) -> None:
    checks.check_training(subject, MANY)


@pytest.mark.parametrize("name", ["Qwen3-VL", "Qwen3.5", "GLM-4V", "LLaVA-OneVision"])
def test_video(name: str) -> None:
    checks.check_forward(checks.Subject(FAMILIES[name]), *suite.VIDEOS)


def test_glm_says_that_it_cannot_read_images_and_videos_together() -> None:
    subject = checks.Subject(FAMILIES["GLM-4V"])
    with subject.attach(0.5), pytest.raises(ValueError, match=r"^pixel_values_videos: got it together with pixel_val"):
        subject.model(**subject.prompt(*suite.MIXED))


@pytest.mark.parametrize("name", ["Qwen3-VL", "InternVL", "LLaVA-OneVision", "SmolVLM"])
def test_beams(name: str) -> None:
    checks.check_beams(checks.Subject(FAMILIES[name]), MANY)


@pytest.mark.parametrize("name", ["Gemma 3", "Mistral 3", "LLaVA-NeXT"])
def test_chunked_prefill(name: str) -> None:
    checks.check_generate(checks.Subject(FAMILIES[name]), MANY, prefill_chunk_size=16)


def test_eager_attention() -> None:
    checks.check_forward(checks.Subject(FAMILIES["LLaVA"], "eager"), *MANY)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.5, [18, 18, 18]),
        ([0.25, 0.75], [9, 9, 27]),
        ({"image": [0.1, 0.5, 1.0]}, [3, 18, 36]),
        (1.0, [36, 36, 36]),
        (None, [7, 7, 7]),
    ],
    ids=str,
)
def test_budget_of_a_call_a_row_or_an_image(llava: checks.Subject, budget: Any, kept: list[int]) -> None:
    inputs = llava.prompt(*MANY)
    with torch.no_grad(), attach_selector(llava.model, llava.selector):
        _, selected = llava.model(**inputs, budget=budget, return_selection=True)
        assert [len(item.indices) for item in selected["image"]] == kept
        _, selected = llava.model.generate(**inputs, budget=budget, return_selection=True, max_new_tokens=2)
        assert [len(item.indices) for item in selected["image"]] == kept


def test_budget_of_rows_with_images_videos_and_neither() -> None:
    subject = checks.Subject(FAMILIES["Qwen3-VL"])
    inputs = subject.prompt([3, "image", 2], [7], [2, "video", 3, "image", 4])
    with torch.no_grad(), subject.attach(0.2):
        _, selected = subject.model(**inputs, budget=[0.5, 0.1, 0.75], return_selection=True)
    kept = {modality: [len(item.indices) for item in items] for modality, items in selected.items()}
    assert kept == {"image": [8, 18], "video": [36]}


def test_minimum_tokens_of_an_image(llava: checks.Subject) -> None:
    inputs = llava.prompt(*MANY)
    with torch.no_grad(), llava.attach(0.1):
        _, selected = llava.model(**inputs, minimum=5, return_selection=True)
    assert [len(item.indices) for item in selected["image"]] == [5, 5, 5]


def test_scores_of_the_caller(llava: checks.Subject) -> None:
    inputs = llava.prompt(*MANY)
    scores = torch.arange(3 * 36.0)
    with torch.no_grad(), llava.attach(0.5):
        logits, selected = llava.model(**inputs, scores={"image": scores}, return_selection=True)
        apart = llava.model(**inputs, scores={"image": list(scores.split(36))}).logits
    assert all(item.indices.tolist() == list(range(18, 36)) for item in selected["image"])
    assert torch.equal(torch.cat([item.scores for item in selected["image"]]), scores)
    assert torch.equal(apart, logits.logits)


def test_selection_that_is_returned(llava: checks.Subject) -> None:
    inputs = llava.prompt(*MANY)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), llava.attach(0.25) as handle:
        (ids, selected) = llava.model.generate(**inputs, return_selection=True, max_new_tokens=2)
        assert ids.shape == (2, length + 2)
        for item in selected["image"]:
            assert torch.equal(item.indices, item.scores.topk(9).indices.sort().values)
        packed = torch.cat([item.indices + 36 * i for i, item in enumerate(selected["image"])])
        assert torch.equal(packed, handle.last_selection["image"].indices)
        output, nothing = llava.model(**llava.prompt([4]), return_selection=True)
        assert nothing == {} and output.logits.shape[1] == 4


def test_one_pool_for_the_call(llava: checks.Subject) -> None:
    inputs = llava.prompt(*MANY)
    with torch.no_grad(), attach_selector(llava.model, TokenNorm(0.5, pool="call")) as handle:
        _, selected = llava.model(**inputs, return_selection=True)
        assert handle.last_selection["image"].plan == SelectionPlan([108], [54])
        assert sum(len(item.indices) for item in selected["image"]) == 54
        assert len({len(item.indices) for item in selected["image"]}) > 1
        with pytest.raises(ValueError, match=r"^budget: got several with pool='call'"):
            llava.model(**inputs, budget=[0.5, 0.2])


def test_minimum_tokens_of_an_image_in_one_pool(llava: checks.Subject) -> None:
    """All budget goes to the first image, but for the minimum of the others."""
    inputs = llava.prompt(*MANY)
    scores = -torch.arange(108.0)
    with torch.no_grad(), attach_selector(llava.model, TokenNorm(0.25, pool="call")):
        options = {"scores": {"image": scores}, "minimum": 4, "return_selection": True}
        _, selected = llava.model(**inputs, **options)
        assert [item.indices.tolist() for item in selected["image"]] == [list(range(19)), [0, 1, 2, 3], [0, 1, 2, 3]]
        assert torch.equal(torch.cat([item.scores for item in selected["image"]]), scores)
        _, selected = llava.model(**inputs, **options | {"minimum": 20})
        assert [len(item.indices) for item in selected["image"]] == [20, 20, 20]
    llava.selector.pool = "call"
    with llava.attach(0.5), pytest.raises(ValueError, match=r"^minimum: got 2 with pool='call' in training"):
        try:
            llava.selector.train()
            llava.model(**inputs, minimum=2)
        finally:
            llava.selector.eval().pool = "image"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, r"budget: got 1.5"),
        ({"budget": [0.5]}, r"budget: got 1 entries, expected 2, one for each row of the batch"),
        ({"budget": [0.5, 0.2, 0.1]}, r"budget: got 3 entries, expected 2, one for each row of the batch"),
        ({"budget": {"image": [0.5, 0.5]}}, r"budget\['image'\]: got 2 entries, expected 3"),
        ({"budget": {"video": [0.5]}}, r"budget: got it for \['video'\], expected it for 'image' too"),
        ({"scores": {"image": torch.zeros(5)}}, r"scores\['image'\]: got shape \(5,\), expected \(108,\)"),
        ({"minimum": -1}, r"minimum: got -1"),
    ],
)
def test_errors_of_what_a_call_asks(llava: checks.Subject, options: dict[str, Any], message: str) -> None:
    inputs = llava.prompt(*MANY)
    with llava.attach(0.5), pytest.raises(ValueError, match=f"^{message}"):
        llava.model(**inputs, **options)


@pytest.mark.parametrize("mode", ["eval", "soft", "straight_through_gather", "straight_through_mask"])
def test_newlines_stay(onevision: checks.Subject, mode: str) -> None:
    model, inputs = onevision.model, onevision.prompt([5, "image", 3], [4, "video", 2])
    onevision.selector.train(mode != "eval")
    onevision.selector.train_mode = "soft" if mode == "eval" else mode
    try:
        with torch.no_grad(), onevision.attach(0.2) as handle:
            _, selected = model(**inputs, return_selection=True)
        for modality, selection in handle.last_selection.items():
            newlines = (selection.tokens == model.model.image_newline).all(-1).sum()
            (item,) = selected[modality]
            assert newlines == item.scores.isinf().sum() > 0
            assert len(item.indices) == newlines + int((len(item.scores) - newlines) * 0.2)
            assert item.scores[item.indices].isinf().sum() == newlines
            if mode == "soft":
                assert torch.equal(selection.probs == 1, item.scores.isinf())
    finally:
        onevision.selector.eval()


def test_deepstack_rows_follow_their_tokens() -> None:
    subject = checks.Subject(FAMILIES["Qwen3-VL"])
    model, inputs = subject.model, subject.prompt(*MANY)
    full = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    seen: dict[str, Any] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    layers = [torch.cat(list(layer)) for layer in full["deepstack_features"]]
    with torch.no_grad(), subject.attach(0.5) as handle:
        model(**inputs)
        rows = handle.last_selection["image"].indices
        for got, layer in zip(seen["deepstack_visual_embeds"], layers, strict=True):
            torch.testing.assert_close(got, layer[rows])
        subject.selector.train().train_mode = "soft"
        model(**inputs)
        probs = handle.last_selection["image"].probs[:, None]
        for got, layer in zip(seen["deepstack_visual_embeds"], layers, strict=True):
            torch.testing.assert_close(got, layer * probs)
        kept = torch.zeros(len(probs), 1, dtype=torch.bool).index_fill_(0, rows, True)
        subject.selector.train_mode, subject.selector.hard_share = "blend", 0.25
        model(**inputs)
        for got, layer in zip(seen["deepstack_visual_embeds"], layers, strict=True):
            torch.testing.assert_close(got, layer * (0.75 * probs + 0.25 * kept))
        subject.selector.train_mode, subject.selector.dropped_scale = "straight_through_mask", 0.3
        model(**inputs)
        for got, layer in zip(seen["deepstack_visual_embeds"], layers, strict=True):
            torch.testing.assert_close(got, torch.where(kept, layer, 0.3 * layer))
    hook.remove()


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Qwen3-VL", "GLM-4V"])
@pytest.mark.parametrize("rows", [suite.MANY, suite.VIDEOS], ids=["images", "videos"])
def test_types_of_tokens_may_be_left_out(name: str, rows: tuple[list[int | str], ...]) -> None:
    subject = checks.Subject(FAMILIES[name])
    inputs = subject.prompt(*rows)
    without = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
    with torch.no_grad(), subject.attach(0.5) as handle:
        logits, positions = subject.model(**inputs).logits, handle.last_prompt.position_ids
        assert torch.equal(subject.model(**without).logits, logits)
        assert torch.equal(handle.last_prompt.position_ids, positions)


def test_no_mask_is_a_mask_of_ones(subject: checks.Subject) -> None:
    inputs = subject.prompt([5, "image", 3, "image", 4])
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad(), subject.attach(0.5):
        torch.testing.assert_close(subject.model(**without).logits, subject.model(**inputs).logits, rtol=0, atol=1e-6)
        ids = subject.model.generate(**without, max_new_tokens=3)
        assert torch.equal(ids, subject.model.generate(**inputs, max_new_tokens=3))


def test_packed_sequences_of_a_model_with_plain_positions_are_refused(llava: checks.Subject) -> None:
    inputs = llava.prompt([5, "image", 3])
    del inputs["attention_mask"]
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), llava.attach(0.5):
        expected = llava.model(**inputs).logits
        assert torch.equal(llava.model(**inputs, position_ids=torch.arange(length)[None]).logits, expected)
        packed = torch.cat([torch.arange(length - 3), torch.arange(3)])[None]
        with pytest.raises(ValueError, match=r"^position_ids: got packed sequences"):
            llava.model(**inputs, position_ids=packed)


def test_an_unknown_family_hears_of_those_supported() -> None:
    config = transformers.LlamaConfig(**{"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8} | TINY)
    model = transformers.LlamaForCausalLM(config)
    with pytest.raises(TypeError) as error:
        attach_selector(model, TokenNorm())
    assert str(error.value).startswith("model: got LlamaForCausalLM, expected one of Qwen2VLForConditionalGeneration, ")
    for family in FAMILIES.values():
        assert family.model_class in str(error.value)


TINY = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8}


@pytest.fixture
def _families_as_before() -> Iterator[None]:
    before = list(families.FAMILIES)
    yield
    families.FAMILIES[:] = before


@pytest.mark.usefixtures("_families_as_before")
def test_the_adapter_of_the_docs() -> None:
    """The example in docs/adapters.md serves a model that the library does not know, in thirty lines."""
    code = re.search(r"```python\n(# A family.*?)```", ADAPTERS.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 30
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = TINY | {"hidden_size": HIDDEN_SIZE, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    config = transformers.AyaVisionConfig(
        vision_config=vision | {"image_size": 32, "patch_size": 4, "model_type": "siglip_vision_model"},
        text_config=text | {"model_type": "cohere2"},
        image_token_index=IMAGE,
        downsample_factor=2,
    )
    model = transformers.AyaVisionForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, *[IMAGE] * 16, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        logits = model(**inputs).logits
        with pytest.raises(TypeError, match=r"^model: got AyaVisionForConditionalGeneration"):
            attach_selector(model, TokenNorm())
        exec(code, {})
        with attach_selector(model, TokenNorm(), budget=1.0):
            assert torch.equal(model(**inputs).logits, logits)
            assert model(**inputs, budget=0.5).logits.shape[1] == 8 + 3
            assert model.generate(**inputs, budget=0.25, max_new_tokens=2).shape[1] == 19 + 2


@pytest.mark.usefixtures("_families_as_before")
def test_register_family_checks_its_argument() -> None:
    for wrong in (Family, int, "LLaVA"):
        with pytest.raises(TypeError, match=r"^family: got "):
            register_family(wrong)
    assert Family not in families.FAMILIES


@pytest.mark.usefixtures("_families_as_before")
def test_the_family_that_was_registered_last_serves_its_class(llava: checks.Subject) -> None:
    @register_family
    class Mine(families.Llava):
        model_classes = ("LlavaForConditionalGeneration",)

    before = len(families.FAMILIES)
    assert register_family(Mine) is Mine and len(families.FAMILIES) == before
    with llava.attach(0.5) as handle:
        assert type(handle.family) is Mine


def test_the_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--family", "LLaVA", "--family", "GLM-4V", "--cell", "image batch", "--cell", "image and video"]
    assert suite.main([*options, "--check", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "cells.md").read_text()
    assert "| LLaVA | ok | (1) |" in table and "(1) no video" in table
    assert "| GLM-4V | ok | (2) |" in table and "(2) not in transformers: videos have the placeholder" in table
    assert "(2) not in transformers" in capsys.readouterr().out
    monkeypatch.setitem(suite.CELLS, "image batch", fail)
    monkeypatch.setitem(suite.ALONE, "image and video", lambda subject: None)
    assert suite.main([*options, "--check", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().err
    assert "missed target: LLaVA, image batch: AssertionError: wrong" in output
    assert "missed target: GLM-4V, image and video: the model alone can do it" in output


def test_the_matrix_of_the_docs_is_the_one_that_is_checked() -> None:
    text = ADAPTERS.read_text()
    notes = dict(re.findall(r"^(\(\d\)) (.*?)  $", text, re.MULTILINE)) | {"ok": None}
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.search(r"^\| \| image batch .*?\n\n", text, re.MULTILINE | re.DOTALL)[0].strip().splitlines()
    ]
    assert head[1:] == list(suite.CELLS)
    told = {name: [notes[cell] for cell in cells] for name, *cells in rows}
    assert {name: [suite.reason_of(name, cell) for cell in suite.CELLS] for name in FAMILIES} == {
        name: told[name] for name in FAMILIES
    }


def fail(subject: checks.Subject) -> None:
    raise AssertionError("wrong")
