"""The suites scaling, memory and train, and what they are made of."""

import json

import pytest
import torch

from bench import points, published, scaling_cases
from bench.allocations import allocated_by
from bench.points import Case, Point
from bench.scaling_fit import crossing, fit
from bench.suites import memory, scaling, train

CPU = torch.device("cpu")


def test_the_exponent_of_a_power_law_is_found():
    found = fit({size: 3e-6 * size**1.5 for size in (256, 1024, 4096, 16384)})
    assert found.exponent == pytest.approx(1.5) and found.error < 1e-6 and found(100) == pytest.approx(3e-3)
    assert fit({1: 1.0, 2: 2.0}) is None
    assert fit({1: 1.0, 2: 4.0, 4: 4.0}).error > 0.3


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({256: 2.0, 1024: 2.0}, "from 256 or less"),
        ({256: 0.5, 1024: 0.5}, "not up to 1,024"),
        ({256: 0.5, 1024: 2.0}, "from 512"),
        ({4096: 1.0}, "-"),
    ],
)
def test_crossing_points(theirs, words):
    assert crossing({256: 1.0, 1024: 1.0}, theirs) == words


def test_allocations_are_exact():
    before = torch.empty(5000)

    def call() -> torch.Tensor:
        nonlocal before
        first, second = torch.empty(1000), torch.empty(500)
        del first, before
        third = torch.empty(250)
        return torch.stack([second[:250], third])

    result, memory_of_call = allocated_by(call, CPU)
    assert result.shape == (2, 250)
    assert memory_of_call == (4 * max(1500, 500 + 250 + 500), 4 * 500)


def _points(directory) -> list[dict]:
    records = [json.loads(line) for line in (directory / "points.jsonl").read_text().splitlines()]
    return [record for record in records if record["record"] == "point"]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(scaling, "QUICK_SECONDS", 0.002)
    monkeypatch.setattr("bench.ops_timing.ROUNDS", 2)
    monkeypatch.setattr(scaling_cases, "WIDTH", 16)
    monkeypatch.setattr(scaling_cases, "HIDDEN", 8)
    monkeypatch.setattr(scaling_cases, "POOL_TOKENS", 16)
    monkeypatch.setattr(scaling_cases, "QUICK_LENGTHS", (64, 256, 8192))
    monkeypatch.setattr(scaling_cases, "POOLS", (1, 2, 4))


def test_a_scaling_run_measures_all_providers_and_says_what_is_missing(short, tmp_path, capsys):
    assert scaling.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    found = _points(tmp_path)
    select = [point for point in found if point["case"]["operator"] == "select_tokens"]
    assert {point["case"].get("N") for point in select} == {None, 64, 256, 8192}
    assert {point["case"].get("pools") for point in select} == {None, 1, 2, 4}
    missing = [point for point in found if point["missing"]]
    assert [(point["provider"], point["case"]["N"]) for point in missing] == [("published", 8192)]
    printed = capsys.readouterr().out
    assert "8,192 x 8,192 matrix takes 0.3 GB: not run" in printed and "memory of select_tokens" in printed


def test_a_wrong_competitor_gives_no_times(short, tmp_path, monkeypatch, capsys):
    right = published.select_tokens
    monkeypatch.setattr(published, "select_tokens", lambda *args: (lambda r: (r[0], r[1], r[2] * 1.01))(right(*args)))
    assert scaling.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert "wrong result, so no times: published: result 0 is off by" in capsys.readouterr().err


def test_an_exponent_above_the_target_is_named():
    console = type("Silent", (), {"print": lambda *args, **options: None})()
    curve = [
        ({"operator": "select_tokens", "N": n}, Point("vs_kernels", "s", [1e-9 * n**1.2])) for n in (64, 256, 1024)
    ]
    assert scaling.show(console, curve) == ["select_tokens grows with N to the power 1.20, expected at most 1.05"]


def test_an_interrupted_suite_goes_on_where_it_stopped(tmp_path):
    args = points.parser("program", None, "suite").parse_args(["--threads", "1", "--out", str(tmp_path)])
    measured = []

    def run(stop_at: int) -> tuple[int, list]:
        def case(number: int) -> list[Point]:
            if number == stop_at:
                raise KeyboardInterrupt
            measured.append(number)
            return [Point("vs_kernels", "s", [float(number)])]

        cases = [Case({"N": 1, "round": number}, lambda number=number: case(number)) for number in range(4)]
        shown = []
        code = points.run("program", "suite", args, lambda *_: cases, lambda _, found: shown.append(found) or [])
        return code, shown

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=2)
    code, ((series,),) = run(stop_at=9)
    assert code == 0 and measured == [0, 1, 2, 3]
    assert series == ({"N": 1}, Point("vs_kernels", "s", [0.0, 1.0, 2.0, 3.0]))


def test_memory_of_the_published_scores_grows_with_the_square(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "WIDTH", 32)
    monkeypatch.setattr(memory, "HIDDEN", 16)
    monkeypatch.setattr(memory, "QUICK_LENGTHS", (256, 512))
    assert memory.main(["--quick", "--threads", "1", "--check", "--out", str(tmp_path)]) == 0
    found = {(p["case"]["operator"], p["provider"], p["case"]["N"]): p["values"][0] for p in _points(tmp_path)}
    assert found["select_tokens", "published: forward", 512] > 512 * 512 * 4
    assert found["importance_scores", "vs_kernels: forward", 512] < 512 * 32 * 4
    assert {operator for operator, _, _ in found} == {*memory.operators(), "select_tokens"}


def test_a_training_step_of_every_recipe(tmp_path, capsys, monkeypatch):
    from bench.models import TINY

    assert train.main(["--threads", "1", "--rounds", "2", "--out", str(tmp_path)], TINY, 64) == 0
    found = _points(tmp_path)
    assert {point["case"]["recipe"] for point in found} == {
        "published soft recipe", "soft", "straight-through, gathered", "straight-through, masked", "score function"
    }  # fmt: skip
    assert len([p for p in found if p["provider"] == "soft: step"]) == 2
    assert "straight-through, gathered" in capsys.readouterr().out
    right = published.soft_topk
    monkeypatch.setattr(published, "soft_topk", lambda scores, k, *rest: right(scores, 2 * k, *rest))
    assert train.main(["--threads", "1", "--rounds", "1", "--out", str(tmp_path)], TINY, 64) == 1
    assert "wrong result, so no times: soft: its" in capsys.readouterr().err


def test_a_step_that_saves_too_little_is_named():
    console = type("Silent", (), {"print": lambda *args, **options: None})()
    values = {"published soft recipe": 4.0, "straight-through, gathered": 2.5}
    measured = [
        ({"N": 1}, Point(f"{recipe}: {what}", unit, [value]))
        for recipe, value in values.items()
        for what, unit in (("step", "s"), ("step without ViT", "s"), ("activations", "bytes"), ("peak", "bytes"))
    ]
    missed = train.show(console, measured)
    assert len(missed) == 2 and "step: 1.60x less than published soft recipe, expected at least 2x" in missed[0]
