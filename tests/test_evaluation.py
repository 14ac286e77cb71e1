"""vs-kernels evaluate, through its command line, with a tiny local model and files made here."""

import importlib
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny_checkpoint import save_tiny_llava

from bench.tiny_families import FAMILIES, HIDDEN_SIZE
from vs_kernels import ImportanceScorer, VisionTokenSelector, checkpoints, cli
from vs_kernels.evaluation.chart import draw
from vs_kernels.evaluation.data import read_questions
from vs_kernels.evaluation.metrics import anls, edit_distance, exact_match
from vs_kernels.evaluation.records import Answer
from vs_kernels.evaluation.run import summary_of
from vs_kernels.evaluation.selectors import BASELINES, selector_named

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_llava(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    lines = [
        {"image": "0.png", "question": "w10 w11", "answer": "w1"},
        {"image": ["1.png", "2.png"], "question": "w12", "answer": ["w2", "w3"]},
        {"image": "2.png", "question": "w13 w14", "answer": "w4"},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data.jsonl"


def run(model: Path, data: Path, out: Path, *options: str, selector: str = "divprune") -> int:
    arguments = ["evaluate", str(data), "--model", str(model), "--selector", selector, "--out", str(out)]
    return cli.main([*arguments, "--budgets", "1.0", "0.2", "--max-new-tokens", "3", *options])


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_evaluate(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(model, data, out) == 0
    full, fifth = results(out)["budgets"]
    assert (full["budget"], fifth["budget"], full["questions"], fifth["questions"]) == (1.0, 0.2, 3, 3)
    assert full["visual_tokens"] == pytest.approx((36 + 72 + 36) / 3)
    assert fifth["visual_tokens"] == pytest.approx((7 + 14 + 7) / 3)
    assert full["prefill_seconds"] > 0 and fifth["prefill_seconds"] > 0
    with Image.open(out / "accuracy.png") as image:
        assert image.width == 1350
    printed = capsys.readouterr().out
    assert "exact match" in printed and "results.json" in printed
    assert re.search("questions x budgets .* 6/6", printed), "no progress bar"

    # The answers at budget 1.0 are those of the model alone; with them as the right ones it scores 1.
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    said = {answer["question"]: answer["prediction"] for answer in answers if answer["budget"] == 1.0}
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    right = [line | {"answer": said[i]} for i, line in enumerate(lines)]
    data.write_text("".join(json.dumps(line) + "\n" for line in right))
    assert run(model, data, tmp_path / "again") == 0
    full, fifth = results(tmp_path / "again")["budgets"]
    assert (full["exact_match"], full["anls"]) == (1.0, 1.0)
    of_fifth = [answer["prediction"] for answer in answers if answer["budget"] == 0.2]
    expected = [[score(text, [said[i]]) for i, text in enumerate(of_fifth)] for score in (exact_match, anls)]
    assert fifth["exact_match"] == pytest.approx(sum(expected[0]) / 3) and fifth["exact_match"] < 1
    assert fifth["anls"] == pytest.approx(sum(expected[1]) / 3)


def test_a_run_that_was_stopped_goes_on(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vs_kernels.integrations.transformers import asking

    out, asked = tmp_path / "out", []
    ask = asking.ask

    def counted(handle: Any, processor: Any, images: Any, question: str, budget: float, tokens: int) -> Any:
        asked.append((question, budget))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(handle, processor, images, question, budget, tokens)

    monkeypatch.setattr(asking, "ask", counted)
    assert run(model, data, out) == 130
    assert "goes on from" in capsys.readouterr().err
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"question": 1, "bud')  # as if the process had been killed
    assert run(model, data, out) == 0
    assert len(asked) == 3 + 4 and [row["questions"] for row in results(out)["budgets"]] == [3, 3]
    assert run(model, data, out) == 0  # nothing left to do
    assert len(asked) == 7
    assert run(model, data, out, "--max-new-tokens", "4") == 2
    assert "has answers with another max_new_tokens" in capsys.readouterr().err
    settings = json.loads((out / "settings.json").read_text())
    assert settings["device"] == "cpu"  # times of two devices are not mixed
    (out / "settings.json").write_text(json.dumps(settings | {"device": "cuda"}))
    assert run(model, data, out) == 2
    assert "has answers with another device" in capsys.readouterr().err


def test_a_budget_given_twice_is_asked_once(model: Path, data: Path, tmp_path: Path) -> None:
    assert run(model, data, tmp_path / "out", "--limit", "1", "--budgets", "0.2", "0.2", "0.5") == 0
    assert [(row["budget"], row["questions"]) for row in results(tmp_path / "out")["budgets"]] == [(0.5, 1), (0.2, 1)]


def test_a_summary_holds_means_of_scores_and_the_median_of_times() -> None:
    answers = [Answer(i, 0.2, "", float(i == 0), anls, 7 + i, seconds) for i, (anls, seconds) in enumerate(SCORES)]
    (row,) = summary_of(answers, {})["budgets"]
    assert row == {
        "budget": 0.2,
        "questions": 3,
        "exact_match": pytest.approx(1 / 3),
        "anls": pytest.approx(0.6),
        "visual_tokens": 8,
        "prefill_seconds": 2.0,
    }


SCORES = ((1.0, 2.0), (0.8, 90.0), (0.0, 1.0))


def test_the_chart_shows_every_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both scores on the left and the time of the prefill on the right, in ascending order of budgets."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))
    rows = [
        {"budget": 1.0, "questions": 2, "exact_match": 0.9, "anls": 0.95, "prefill_seconds": 4.0},
        {"budget": 0.2, "questions": 2, "exact_match": 0.5, "anls": 0.65, "prefill_seconds": 1.0},
    ]
    draw({"settings": {"model": "a model", "selector": "dart"}, "budgets": rows}, tmp_path / "chart.png")
    accuracy, prefill = figures[0].axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in accuracy.lines}
    assert drawn == {"exact match": ([0.2, 1.0], [0.5, 0.9]), "ANLS": ([0.2, 1.0], [0.65, 0.95])}
    (line,) = prefill.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.2, 1.0], [1.0, 4.0])


def test_a_trained_selector(model: Path, data: Path, tmp_path: Path) -> None:
    VisionTokenSelector(ImportanceScorer(HIDDEN_SIZE)).save_pretrained(tmp_path / "selector")
    assert run(model, data, tmp_path / "out", "--limit", "1", selector=str(tmp_path / "selector")) == 0
    assert results(tmp_path / "out")["budgets"][1]["visual_tokens"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--selector", "missing/folder/there"], "missing/folder/there: no such directory"),
        (["--budgets", "0"], "got '0', expected a number in"),
        (["--pool", "batch"], "invalid choice"),
    ],
)
def test_errors_of_the_command(
    model: Path, data: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run(model, data, tmp_path / "out", *options)
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: JSONDecodeError"),
        ('{"image": "0.png", "question": "a"}', r"line 2: KeyError\('answer'\)"),
        ('{"image": 3, "question": "a", "answer": "b"}', "line 2: TypeError.*got 3"),
        ('{"image": [], "question": "a", "answer": "b"}', "line 2: TypeError"),
        ('{"image": "9.png", "question": "a", "answer": "b"}', "line 2: no image .*9.png"),
    ],
)
def test_errors_of_the_data(data: Path, line: str, message: str) -> None:
    first = data.read_text().splitlines()[0]
    data.write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_questions(data)
    data.write_text("\n")
    with pytest.raises(ValueError, match="no questions in it"):
        read_questions(data)


def test_metrics() -> None:
    assert exact_match(" Blue  sky. ", ["red", "blue sky"]) == 1
    assert exact_match("blue", ["blue sky"]) == 0
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("kitten", ["dog", "Kitten"]) == 1
    assert anls("Two  words", ["two words"]) == 1 and anls("9.", ["9"]) == 0.5  # a full stop is a character
    assert anls("abcd", ["wxyz"]) == 0  # nothing in common
    assert anls("abcd", ["abyz"]) == 0.5 and anls("abcde", ["abxyz"]) == 0  # 0.4 is below the threshold


def test_selectors_by_name() -> None:
    for name, baseline in BASELINES.items():
        assert type(selector_named(name, "call")) is baseline and selector_named(name, "call").pool == "call"
    with pytest.raises(ValueError, match=r"^pool: got 'batch'"):
        selector_named("random", "batch")


def test_the_model_of_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own arguments; lmms-eval's model, which gets all others, stands in here."""

    class Base:
        def __init__(self, **options: Any):
            self.options, self.model = options, FAMILIES["Qwen2.5-VL"].model()

    module = types.ModuleType("lmms_eval.models.chat.qwen2_5_vl")
    module.Qwen2_5_VL = Base
    for part in ("lmms_eval", "lmms_eval.models", "lmms_eval.models.chat"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "vs_kernels.integrations.lmms_eval.qwen2_5_vl"
    monkeypatch.delitem(sys.modules, name, raising=False)
    selected = importlib.import_module(name).Qwen2_5_VLSelected
    monkeypatch.delitem(sys.modules, name)

    scorer = ImportanceScorer(HIDDEN_SIZE)
    path = checkpoints.export(VisionTokenSelector(scorer), tmp_path, "qwen2_5_vl")
    made = selected(pretrained=str(path), max_pixels=9)
    assert made.options == {"pretrained": str(path), "max_pixels": 9}
    assert torch.equal(made.handle.selector.scorer.q_proj.weight, scorer.q_proj.weight)
    assert (made.handle.selector.pool, made.handle.budget, made.handle.model) == ("call", 0.2, made.model)
    made = selected(selector="dart", budget="0.3", pool="image", pretrained="a/model")
    assert type(made.handle.selector) is BASELINES["dart"]
    assert (made.handle.selector.pool, made.handle.budget) == ("image", 0.3)
    with pytest.raises(ValueError, match=r"^selector: got None without pretrained"):
        selected()
    with pytest.raises(ValueError, match=r"^budget: got 2.0"):
        selected(selector="dart", budget=2)


def test_lmms_eval_finds_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point; lmms-eval itself stands in here, tests/test_lmms_eval.py runs it."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    entry = re.search(r'\[project.entry-points."lmms_eval.models"\]\nvs_kernels = "(.*):(.*)"', project)
    module_name, name = entry.groups()
    registry = types.ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = dict
    for part in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    manifest = getattr(importlib.import_module(module_name), name)()
    assert manifest["model_id"] == "qwen2_5_vl_selected"
    path = Path(__file__).parent.parent.joinpath(*manifest["chat_class_path"].split(".")[:-1]).with_suffix(".py")
    assert f"class {manifest['chat_class_path'].split('.')[-1]}(" in path.read_text()
