"""The suite of real models' shapes, its providers, and the timing of a CUDA device on a stand-in for one."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import device_timing, ops_eager
from bench.model_shapes import ITEMS, MODELS, tokens
from bench.providers import operators
from bench.suites import shapes


def test_tokens_of_real_models():
    assert tokens("Qwen2.5-VL-7B", "448") == 256 and tokens("Qwen2.5-VL-7B", "4K") == 137 * 77
    assert tokens("Qwen2.5-VL-3B", "64 frames") == 32 * 256
    assert tokens("Qwen3-VL-8B", "448") == 14 * 14
    assert tokens("LLaVA-OneVision-7B", "224") == 2 * 729 and tokens("LLaVA-OneVision-7B", "4K") == 10 * 729
    assert all(tokens(model, item) > 0 for model in MODELS for item in ITEMS)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "QUICK_SECONDS", 0.001)
    monkeypatch.setattr("bench.ops_timing.ROUNDS", 2)
    model = MODELS["Qwen2.5-VL-7B"]._replace(width=16, image=lambda columns, rows: 60)
    monkeypatch.setitem(MODELS, "Qwen2.5-VL-7B", model)
    return lambda *options: shapes.main(["--quick", "--threads", "1", "--out", str(tmp_path), *options])


def test_every_operator_in_every_mode_against_everybody(tiny, tmp_path, capsys):
    assert tiny() == 0
    found = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    points = [record for record in found if record["record"] == "point"]
    modes = {}
    for point in points:
        modes.setdefault(point["case"]["operator"], set()).add(point["case"]["mode"])
    for name, operator in operators(compiled=False).items():
        assert modes[name] == ({"forward", "backward", "both"} if operator.leaves else {"forward"})
        providers = {p["provider"] for p in points if p["case"]["operator"] == name}
        assert set(operator.others) < providers and "vs_kernels, PyTorch" in providers
    assert [(p["provider"], p["missing"]) for p in points if p["missing"]] == [
        ("FlashInfer", "FlashInfer's Top-K needs a CUDA device")
    ]
    assert "missing: FlashInfer: FlashInfer's Top-K needs a CUDA device" in capsys.readouterr().out


def test_a_provider_with_a_wrong_gradient_gives_no_times(tiny, monkeypatch, capsys):
    right = ops_eager.soft_topk
    monkeypatch.setattr(ops_eager, "soft_topk", lambda scores, *rest: right(scores, *rest).detach() + 0 * scores)
    assert tiny("--operators", "soft_topk", "--modes", "both") == 1
    assert "wrong result, so no times: soft_topk, both, N=60: 64 bisections: " in capsys.readouterr().err


def test_a_matrix_that_is_too_large_is_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "DEFINITION_TOKENS", 50)
    assert tiny("--operators", "select_tokens") == 0
    records = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    missing = {record["provider"]: record["missing"] for record in records if record.get("missing")}
    assert missing == {"published": "its 60 x 60 matrix takes 0.0 GB: not run"}


class Event:
    """Stands for torch.cuda.Event; the queue's clock is the number of calls and flushes so far."""

    queue: list[str] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = len(self.queue)

    def elapsed_time(self, end: "Event") -> float:
        return float(end.at - self.at)


def test_only_the_call_is_between_the_events(monkeypatch):
    queue: list[str] = []
    monkeypatch.setattr(Event, "queue", queue)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: queue.append("wait"))
    monkeypatch.setattr(device_timing, "CacheFlush", lambda: lambda: queue.append("flush"))
    calls = {"one": lambda: queue.append("one"), "two": lambda: queue.extend(["two", "two"])}
    for cold in (False, True):
        queue.clear()
        timings = device_timing.timed(calls, cold)
        count = device_timing.ROUNDS * device_timing.CALLS
        assert timings["one"].wall == [1e-3] * count and timings["two"].wall == [2e-3] * count
        assert queue.count("flush") == (2 * count if cold else 0)
        assert queue.count("wait") == 2 * device_timing.ROUNDS


@pytest.mark.parametrize("on_default_stream", [True, False])
def test_a_replay_gives_what_its_graph_wrote_and_never_captures_the_default_stream(monkeypatch, on_default_stream):
    made, queue = [], []

    class Stream:
        def __init__(self):
            made.append(self)

        def wait_stream(self, other):
            queue.append("wait")

    class Graph:
        def replay(self):
            queue.append("replay")

    @contextlib.contextmanager
    def capture(graph, stream):
        queue.append(stream)
        yield

    default = Stream()
    current = default if on_default_stream else Stream()
    before = len(made)
    for name, value in {
        "Stream": Stream, "CUDAGraph": Graph, "graph": capture, "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda: current, "default_stream": lambda: default,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    replay = device_timing.Replay(lambda: queue.append("call") or "results")
    side = made[-1]
    assert len(made) == before + on_default_stream and side is not default
    assert queue == ["wait", *["call"] * device_timing.WARM_UP, "wait", side, "call"]
    assert replay() == "results" and queue[-1] == "replay"


def test_a_call_that_cannot_be_captured_is_missing_with_the_reason(monkeypatch):
    def refused(call):
        raise RuntimeError("operation not permitted when stream is capturing\nat length")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(device_timing, "Replay", refused)
    found, missing = device_timing.ways(int)
    assert list(found) == [""]
    assert missing == {
        ", graph": "cannot be captured as a CUDA graph: operation not permitted when stream is capturing"
    }


def test_pytest_benchmark_calls_every_operator_and_competitor():
    """Once each, without a measurement: the command of the README."""
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-disable", "-q"]
    done = subprocess.run(command, cwd=Path(shapes.__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
