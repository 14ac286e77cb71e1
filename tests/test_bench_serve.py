"""The benchmark of a served model, without a server."""

import pytest

pytest.importorskip("rich")

from bench import serve_summary
from bench.serve_load import Load, Reply
from bench.suites import serve


def loads(plain: float, selecting: float) -> dict[tuple[str, int], list[Load]]:
    """One round of two requests at every number of clients; seconds of a round by server."""
    times = {serve_summary.PLAIN: (plain, 600), "budget 20%": (selecting, 200)}
    return {
        (server, clients): [Load(seconds, [Reply(0.1, 0.2, prompt, 16), Reply(0.3, 0.4, prompt, 16)])]
        for clients in (1, 4)
        for server, (seconds, prompt) in times.items()
    }


def test_rows_and_verdict() -> None:
    rows = serve_summary.summarise(loads(2.0, 1.0))
    assert serve_summary.speedups(rows) == {("budget 20%", 1): 2.0, ("budget 20%", 4): 2.0}
    assert serve_summary.failures(rows) == []
    (row,) = (row for row in rows if (row.server, row.concurrency) == ("budget 20%", 4))
    assert (row.requests_per_second, row.kv_tokens) == (2.0, 216)
    assert (row.first_p50_s, row.answer_p50_s) == (pytest.approx(0.2), pytest.approx(0.3))
    assert row.first_p95_s == pytest.approx(0.29)


def test_a_lower_throughput_is_missed() -> None:
    missed = serve_summary.failures(serve_summary.summarise(loads(1.0, 1.25)))
    assert missed == [
        f"at concurrency {clients} budget 20% serves 0.80x the requests a second, expected 1x at least"
        for clients in (1, 4)
    ]


def test_the_chart_is_drawn(tmp_path) -> None:
    serve_summary.draw(tmp_path / "chart.png", serve_summary.summarise(loads(2.0, 1.0)), ["a note"])
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_a_prompt_of_another_length_is_a_wrong_result() -> None:
    load = Load(1.0, [Reply(0.1, 0.2, 632, serve.NEW_TOKENS)])
    serve._check(serve_summary.PLAIN, load, 0)
    with pytest.raises(serve.WrongResult, match="budget 20%: a prompt of 632 tokens with 16 new ones, expected 171"):
        serve._check("budget 20%", load, 461)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "2"], "argument --budgets: got '2', expected a number in (0, 1]"),
        (["--rounds", "0"], "argument --rounds: got '0', expected an integer >= 1"),
        (["--concurrency", "x"], "argument --concurrency: got 'x'"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        serve.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m bench serve: {message}") and error.count("\n") == 1


def test_without_vllm_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(serve, "vllm_version", lambda: "unknown")
    with pytest.raises(SystemExit):
        serve.main([])
    assert "it needs vLLM" in capsys.readouterr().err
