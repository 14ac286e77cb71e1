"""Records that resume, series of all suites, and comparisons of runs."""

import csv
import json

import numpy as np
import pytest

from bench.commands import compare as command
from bench.comparison import compare, holm
from bench.harness import Recorder, read_records
from bench.results import load, series, write_csv

FACTS = {"suite": "scaling", "device": "cpu", "commit": "abc"}


def _run(folder, seconds: dict[str, list[float]], control: str = "theirs", **counts: float):
    """The records of a run of one case: the rounds of every provider, and counts."""
    folder.mkdir(exist_ok=True)
    with Recorder(folder / "points.jsonl", FACTS) as recorder:
        for provider, values in seconds.items():
            _point(recorder, provider, "s", values, provider == control)
        for provider, value in counts.items():
            _point(recorder, provider, "bytes", [value], False)
        recorder.finish()
    return folder


def _point(recorder, provider, unit, values, control):
    recorder.write(
        "point", case={"operator": "op", "N": 4096}, provider=provider, unit=unit, values=values, per_round=1,
        control=control, missing="",
    )  # fmt: skip


def test_a_run_with_the_same_facts_goes_on_and_a_whole_or_another_one_begins_anew(tmp_path):
    path = tmp_path / "points.jsonl"
    with Recorder(path, FACTS) as recorder:
        recorder.write("point", case={"N": 1}, value=(1, 2))
    with path.open("a") as file:
        file.write('{"record": "poi')
    with Recorder(path, FACTS) as recorder:
        assert recorder.resumed == "took up 1 records of an interrupted run"
        assert recorder.find("point", case={"N": 1}) == {"record": "point", "case": {"N": 1}, "value": [1, 2]}
        assert recorder.find("point", case={"N": 2}) is None
        recorder.finish()
    assert [record["record"] for record in read_records(path)] == ["run", "point", "end"]
    with Recorder(path, FACTS) as recorder:
        assert recorder.resumed == "" and recorder.find("point") is None
        recorder.write("point", case={"N": 1})
    with Recorder(path, FACTS | {"commit": "abd"}) as recorder:
        assert recorder.resumed == "" and recorder.find("point") is None


def test_a_line_that_is_damaged_elsewhere_is_an_error(tmp_path):
    (tmp_path / "points.jsonl").write_text('{"record": "run"}\n{"rec\n{"record": "end"}\n')
    with pytest.raises(ValueError, match=r"points\.jsonl, line 2: not a record"):
        read_records(tmp_path / "points.jsonl")


def test_the_csv_has_a_line_for_every_series(tmp_path):
    _run(tmp_path, {"vs_kernels": [1.0, 2.0, 3.0]}, memory=7)
    write_csv(tmp_path / "points.csv", load(tmp_path))
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["provider"], row["unit"], row["q50"]) for row in rows] == [
        ("op, 4,096", "vs_kernels", "s", "2.0"),
        ("op, 4,096", "memory", "bytes", "7.0"),
    ]


def _noisy(rng: np.random.Generator, seconds: float, rounds: int = 10) -> dict[str, list[float]]:
    """Rounds of two providers on a machine whose speed changes a little from round to round and from run to run."""
    machine = rng.lognormal(0, 0.03) * rng.lognormal(0, 0.05, rounds)
    times = {"vs_kernels": seconds * rng.lognormal(0, 0.04, rounds), "theirs": 0.1 * rng.lognormal(0, 0.04, rounds)}
    return {name: (machine * values).tolist() for name, values in times.items()}


def test_runs_of_the_same_commit_do_not_differ_and_a_slower_one_does(tmp_path):
    rng = np.random.default_rng(0)
    false_alarms = found = 0
    for number in range(20):
        first = _run(tmp_path / f"a{number}", _noisy(rng, 0.01))
        same = _run(tmp_path / f"b{number}", _noisy(rng, 0.01))
        slower = _run(tmp_path / f"c{number}", _noisy(rng, 0.017))
        false_alarms += command.main([str(first), str(same)])
        found += command.main([str(first), str(slower)])
    assert false_alarms <= 1 and found >= 19


def test_a_faster_run_is_named_and_not_a_failure(tmp_path, capsys):
    rng = np.random.default_rng(1)
    first, faster = (_run(tmp_path / name, _noisy(rng, s)) for name, s in (("a", 0.02), ("b", 0.01)))
    assert command.main([str(first), str(faster)]) == 0
    printed = capsys.readouterr().out
    assert "1 series compared: 1 better, 0 worse" in printed and "Mann-Whitney" in printed


def test_a_series_without_a_competitor_in_its_rounds_is_judged_by_the_drift_of_the_others(tmp_path):
    slower = {"vs_kernels": [1.4 + i / 100 for i in range(10)], "theirs": [1.2] * 5}
    before = load(_run(tmp_path / "a", {"vs_kernels": [1 + i / 100 for i in range(10)], "theirs": [1.0] * 5}))
    (change,) = compare(before, load(_run(tmp_path / "b", slower))).changes
    assert change.p_value < 0.001 and change.least == pytest.approx(1.2**3 - 1) and not change.beyond_noise
    (change,) = compare(before, load(_run(tmp_path / "c", slower | {"theirs": [1.0] * 5}))).changes
    assert change.worse


def test_counts_have_no_noise_and_few_rounds_no_verdict(tmp_path):
    before, after = (load(_run(tmp_path / n, {"vs_kernels": [1.0, 1.0]}, bytes=b)) for n, b in (("a", 100), ("b", 101)))
    comparison = compare(before, after)
    assert comparison.untested == 1 and [change.worse for change in comparison.changes] == [True]
    assert not any(change.beyond_noise for change in compare(before, before).changes)


def test_holm_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_results_that_do_not_fit_are_one_line_and_exit_code_2(tmp_path, capsys):
    _run(tmp_path / "a", {"vs_kernels": [1.0] * 10})
    _run(tmp_path / "b", {"something else": [1.0] * 10})
    for name, message in (("c", "no such file or directory"), ("b", "no measurement in common")):
        with pytest.raises(SystemExit) as stopped:
            command.main([str(tmp_path / "a"), str(tmp_path / name)])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_prefill_records_become_series_by_prompt_budget_and_stage(tmp_path):
    with Recorder(tmp_path / "samples.jsonl", FACTS | {"suite": "prefill"}) as recorder:
        for number in (2, 1):
            times = {f"{stage}_wall_s": number * 1.0 for stage in ("vit", "selection", "llm", "total")}
            recorder.write("sample", prompt="p", round=number, budget=0.2, kv_cache_bytes=9, **times)
    (run,) = load(tmp_path)
    found = {one.provider: one for one in series(run)}
    assert found["llm"].case == "p, budget 20%" and found["llm"].values == [1.0, 2.0]
    assert found["vit"].control and found["KV cache"].unit == "bytes"
    assert json.dumps(found["llm"]._asdict())
