"""Records that resume, series of all suites, and comparisons of runs."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bench.commands import compare as command
from bench.comparison import chance, compare, holm, of_processes
from bench.harness import Recorder, read_records
from bench.results import load, series, write_csv

FACTS = {"suite": "scaling", "device": "cpu", "commit": "abc"}


def _run(folder, seconds: dict[str, list[float]], control: str = "theirs", **counts: float):
    """The records of a run of one case: the rounds of every provider, and counts."""
    folder.mkdir(parents=True, exist_ok=True)
    with Recorder(folder / "points.jsonl", FACTS) as recorder:
        for provider, values in seconds.items():
            _point(recorder, provider, "s", values, provider == control)
        for provider, value in counts.items():
            _point(recorder, provider, "bytes", [value], False)
        recorder.finish()
    return folder


def _point(recorder, provider, unit, values, control, size=4096):
    recorder.write(
        "point", case={"operator": "op", "N": size}, provider=provider, unit=unit, values=values, per_round=1,
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


def _noisy(folder, rng: np.random.Generator, slower: float = 1.0, cases: int = 12, runs: int = 5):
    """A result of several processes on a machine whose speed changes from hour to hour; each operator of each process
    lands on better or worse memory, one of ours takes a third longer in every second process; the first of ours is
    ``slower`` times."""
    machine = rng.lognormal(0, 0.05)
    for run in range(runs):
        (folder / f"{run}").mkdir(parents=True)
        with Recorder(folder / f"{run}" / "points.jsonl", FACTS) as recorder:
            for case in range(cases):
                rounds = machine * rng.lognormal(0, 0.03, 10)
                for provider in ("vs_kernels", "theirs"):
                    by = slower if provider == "vs_kernels" and not case else 1.0
                    by *= 4 / 3 if provider == "vs_kernels" and case == 1 and rng.random() < 0.5 else 1.0
                    values = by * rng.lognormal(0, 0.01) * rounds * rng.lognormal(0, 0.02, 10)
                    _point(recorder, provider, "s", values.tolist(), provider == "theirs", case)
            recorder.finish()
    return folder


def test_results_of_the_same_commit_do_not_differ_and_one_that_is_a_fifth_slower_does(tmp_path):
    rng = np.random.default_rng(0)
    false_alarms = found = 0
    for number in range(20):
        first, same = (_noisy(tmp_path / f"{name}{number}", rng) for name in "ab")
        false_alarms += command.main([str(first), str(same)])
        slower = _noisy(tmp_path / f"c{number}", rng, 1.2)
        worse = [change.key for change in compare(load(first), load(slower)).changes if change.worse]
        found += worse == [("scaling", "op, 0", "vs_kernels", "s")]
    assert false_alarms <= 1 and found >= 19


def test_a_faster_result_is_named_and_not_a_failure(tmp_path, capsys):
    rng = np.random.default_rng(1)
    first, faster = (_noisy(tmp_path / name, rng, by) for name, by in (("a", 2), ("b", 1)))
    assert command.main([str(first), str(faster)]) == 0
    printed = capsys.readouterr().out
    assert "12 series compared: 1 better, 0 worse" in printed and "t test" in printed


def test_of_a_single_process_nothing_is_told(tmp_path, capsys):
    rng = np.random.default_rng(1)
    first, slower = (_noisy(tmp_path / name, rng, by, runs=runs) for name, by, runs in (("a", 1, 5), ("b", 2, 4)))
    assert command.main([str(first), str(slower)]) == 0
    assert "12 times with fewer than 5 runs (--processes 5)" in " ".join(capsys.readouterr().out.split())


def test_processes_that_overlap_are_not_told_apart():
    apart = [1.0, 1.01, 1.02, 1.03, 1.04], [1.2, 1.21, 1.22, 1.23, 1.24]
    expected = ttest_ind(*map(np.log, apart)).pvalue
    assert of_processes(*apart) == pytest.approx(expected) and expected < 1e-5
    assert of_processes(apart[1], apart[0]) == of_processes(*apart)
    assert of_processes(apart[0], [*apart[1][1:], 1.0]) == 1.0


def test_a_series_without_a_competitor_in_its_suite_is_not_judged(tmp_path):
    for name, by in (("a", 1), ("b", 3)):
        for run in range(5):
            _run(tmp_path / name / f"{run}", {"vs_kernels": [(1 + run / 100) * by] * 3})
    comparison = compare(load(tmp_path / "a"), load(tmp_path / "b"))
    assert comparison.untested == 1 and not comparison.changes


def test_a_move_counts_by_those_of_the_competitors():
    null = [0.01, -0.02, 0.03, 0.0]
    # scipy.stats.ttest_ind of one value against the others has the same statistic.
    expected = ttest_ind([0.2], null).pvalue
    assert chance(0.2, null) == pytest.approx(expected) and expected < 0.01
    assert chance(0.2, [10 * move for move in null]) > 0.3
    assert (chance(0.0, [0.0, 0.0]), chance(0.1, [0.0, 0.0])) == (1.0, 0.0)


def test_counts_have_no_noise_and_a_single_process_no_verdict(tmp_path):
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
            times = {f"{stage}_wall_s": number * 1.0 for stage in ("vit", "selection", "own", "llm", "total")}
            recorder.write("sample", prompt="p", round=number, budget=0.2, kv_cache_bytes=9, **times)
            del times["own_wall_s"]  # as earlier versions recorded it
            recorder.write("sample", prompt="old", round=number, budget=0.2, kv_cache_bytes=9, **times)
    (run,) = load(tmp_path)
    found = {one.provider: one for one in series(run) if one.case == "p, budget 20%"}
    assert found["llm"].values == found["own"].values == [1.0, 2.0]
    assert found["vit"].control and found["own"].control and found["KV cache"].unit == "bytes"
    assert not found["selection"].control
    assert [one.provider for one in series(run) if one.case == "old, budget 20%"] == [
        "vit", "selection", "llm", "total", "KV cache",
    ]  # fmt: skip
    assert json.dumps(found["llm"]._asdict())


def test_serve_records_become_series_by_clients_and_budget(tmp_path):
    reply = {"first_token_s": 0.5, "total_s": 1.0, "prompt_tokens": 100, "new_tokens": 16}
    with Recorder(tmp_path / "samples.jsonl", FACTS | {"suite": "serve"}) as recorder:
        for server, seconds in (("all tokens", 4.0), ("budget 20%", 2.0)):
            for number in (1, 2):
                fields = {"server": server, "concurrency": 4, "round": number, "seconds": seconds}
                recorder.write("load", **fields, replies=[reply, reply])
    (run,) = load(tmp_path)
    found = {one.provider: one for one in series(run)}
    assert found["budget 20%: a request"].values == [1.0, 1.0] and not found["budget 20%: a request"].control
    assert found["all tokens: first token"].control and found["all tokens: first token"].case == "4 clients"
    assert found["all tokens: KV cache of a request"][3:5] == ("tokens", [116])
