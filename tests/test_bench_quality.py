"""The quality benchmark: its tasks, its shortcuts against the real path, and a selector that learns in seconds."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.quality import backbone as backbones
from bench.quality import digits, methods, shapes
from bench.quality.answering import Answering, correct_answers, make_features
from bench.quality.evaluate import recall
from bench.quality.model import answer_logits, encode, encode_with_attention, small_model, to_pixel_values
from bench.quality.recipes import PHASES, new_selector, train_selector
from bench.quality.shipped import DEFAULT, shipped_backbone, shipped_selectors
from bench.suites import quality
from vs_kernels.integrations.transformers import attach_selector

TASKS = {task.name: task for task in [*digits.TASKS, shapes.TASK]}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_reproducible_and_consistent(task):
    first, second = (task.batch(np.random.default_rng(3), "validation", 8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.pictures.dtype == torch.uint8 and first.relevant.shape == (8, task.side**2)
    asked = first.labels != -100
    assert (asked.sum(1) >= 1).all() and (first.relevant.sum(1) >= 1).all()
    assert int(first.labels.max()) < len(task.vocabulary) and int(first.prompt.max()) < len(task.vocabulary)
    if task.name != "shapes":
        named = first.shown[first.relevant].view(8, digits.DIGITS)
        assert torch.equal(named.sort(1).values, first.labels.sort(1).values)


def test_digits_and_photos_of_validation_are_not_those_of_training():
    (train, _), (validation, _) = digits.handwriting("train"), digits.handwriting("validation")
    assert len(train) == 1437 and len(validation) == 360
    assert not set(digits.PHOTOS["train"]) & set(digits.PHOTOS["validation"])


@pytest.mark.parametrize("train_mode", ["soft", "straight_through_gather"])
def test_answering_from_features_is_what_attach_selector_does(train_mode):
    task, model = TASKS["tiles"], small_model(digits.VOCABULARY).requires_grad_(False).eval()
    batch = task.batch(np.random.default_rng(0), "train", 2)
    selector = new_selector(128, 0)
    for projection in (selector.scorer.q_proj, selector.scorer.k_proj):
        torch.nn.init.normal_(projection.weight, std=0.1)
    selector.train().train_mode = train_mode
    answering = Answering(model, task, selector)(encode(model, batch.pictures), batch.prompt, batch.labels)

    pixel_values, grid = to_pixel_values(batch.pictures)
    ids = {name: task.vocabulary[f"<{name}>"] for name in ("vision_start", "image", "vision_end")}
    before = torch.tensor([ids["vision_start"], *[ids["image"]] * task.side**2, ids["vision_end"]]).expand(2, -1)
    inputs = {"input_ids": torch.cat([before, batch.prompt], 1), "pixel_values": pixel_values, "image_grid_thw": grid}
    with attach_selector(model, selector):
        logits = model(**inputs).logits
    torch.testing.assert_close(answering.logits, logits[:, -batch.prompt.shape[1] :], rtol=1e-4, atol=1e-4)


def test_windows_in_one_call_are_windows_in_many(monkeypatch):
    model = small_model(digits.VOCABULARY).eval()
    pictures = TASKS["tiles"].batch(np.random.default_rng(0), "train", 2).pictures
    with torch.no_grad():
        tokens, received = encode_with_attention(model, pictures)
        for block in model.model.visual.blocks:
            del block.attn.forward
        torch.testing.assert_close(tokens, encode(model, pictures), rtol=1e-4, atol=1e-5)
    # every one of the 4 patches of a token gives away an attention of 1
    torch.testing.assert_close(received.sum(1), torch.full((2,), 4.0 * 144))


def test_a_backbone_resumes_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "BATCH", 2)
    monkeypatch.setattr(backbones, "SAVE_EVERY", 2)

    class Killed(Exception):
        pass

    def kill(message):
        raise Killed

    task = TASKS["shapes"]
    backbones.train_backbone(task, tmp_path / "whole.safetensors", 6, log=lambda _: None)
    with pytest.raises(Killed):
        backbones.train_backbone(task, tmp_path / "parts.safetensors", 6, log=kill)
    assert (tmp_path / "parts.unfinished").is_file()
    with pytest.raises(ValueError, match="of 6 steps with seed 0, expected 8, 0"):
        backbones.train_backbone(task, tmp_path / "parts.safetensors", 8)
    backbones.train_backbone(task, tmp_path / "parts.safetensors", 6, log=lambda _: None)
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "parts.safetensors").read_bytes()
    assert not (tmp_path / "parts.unfinished").exists()


def test_methods_keep_the_budget_and_the_oracle_what_matters():
    task = TASKS["tiles"]
    features = make_features(small_model(digits.VOCABULARY).eval(), task, "validation", 4, 0)
    chosen = {"oracle": methods.oracle, "random": methods.random(0), **methods.TRAINING_FREE}
    for name, choose in chosen.items():
        indices = choose(features, 0.1)
        assert indices.shape == (4, 14), name
        assert (indices.diff(dim=1) > 0).all() and indices.min() >= 0 and indices.max() < 144, name
    assert recall(features.batch.relevant, methods.oracle(features, 0.1)) == 1.0
    assert recall(features.batch.relevant, methods.random(0)(features, 0.1)) < 0.5


@pytest.mark.parametrize("recipe", PHASES)
def test_every_compared_recipe_trains(recipe):
    task, model = TASKS["shapes"], small_model(shapes.VOCABULARY).requires_grad_(False).eval()
    features = make_features(model, task, "train", 8, 0)
    first, second = (train_selector(model, task, features, recipe, seed=1, steps=4, batch=4) for _ in range(2))
    weight = first.selector.scorer.q_proj.weight
    assert (weight - new_selector(128, 1).scorer.q_proj.weight).abs().max() > 1e-5
    assert torch.equal(weight, second.selector.scorer.q_proj.weight)


def test_a_random_scorer_learns_to_keep_the_digits_that_count():
    """The default recipe on the shipped model, a quarter of its steps."""
    task = TASKS["tiles"]
    model = shipped_backbone(task)
    training = make_features(model, task, "train", 200, 1)
    validation = make_features(model, task, "validation", 50, 2)

    def kept(selector):
        return recall(validation.batch.relevant, methods.learned(selector)(validation, 0.2))

    assert kept(new_selector(128, 0)) < 0.5
    assert kept(train_selector(model, task, training, DEFAULT, seed=0, steps=60).selector) >= 0.9


def test_the_shipped_selectors_are_those_that_the_docs_speak_of():
    for task in digits.TASKS:
        model = shipped_backbone(task)
        features = make_features(model, task, "validation", 50, 5)
        indices = methods.learned(shipped_selectors(task, DEFAULT)[0])(features, 0.1)
        tokens = features.tokens.gather(1, indices[..., None].expand(-1, -1, 128))
        right = correct_answers(model, task.side, tokens, indices, *features.batch.words)
        assert right.mean() > 0.8
        logits = answer_logits(model, tokens, indices, task.side, features.batch.prompt)
        assert torch.equal(right, (logits.argmax(-1) == features.batch.labels).double().mean(1))


def test_a_run_writes_its_rows_its_summary_and_its_pictures(tmp_path, capsys):
    assert quality.main(["--tasks", "tiles", "--pictures", "50", "--out", str(tmp_path)]) == 0
    assert "Six digits among" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    by_method = {row["method"]: row["accuracy"] for row in summary["rows"] if row["budget"] == 0.1}
    assert by_method["oracle"] >= by_method["learned"] > by_method["random"] + 0.2
    for name in ("accuracy.png", "contact_sheet.png", "rows.jsonl"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pictures 10", "argument --pictures: got '10', expected an integer >= 50"),
        ("--tasks colours", "argument --tasks: invalid choice: 'colours'"),
        ("--check --tasks tiles", "argument --check: it looks at all tasks, expected no --tasks"),
        ("--train everything", "argument --train: invalid choice: 'everything'"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        quality.main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m bench quality: {message}") and error.count("\n") == 1
