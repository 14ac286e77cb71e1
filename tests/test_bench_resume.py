"""Every suite that was cut off goes on after what it measured: the same command, each record measured once."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench
from bench import harness
from bench.serve_load import Load, Reply
from bench.suites import compile as compile_suite
from bench.suites import families, quality, serve, traffic


class Killed(BaseException):
    """What no suite catches: the process is gone."""


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _goes_on(monkeypatch: pytest.MonkeyPatch, path: Path, kind: str, run: Callable[[], int]) -> list[dict]:
    """The records of a run that was killed after its second record of a kind, and run again."""
    write = harness.Recorder.write
    written = []

    def killing(recorder, name, **fields):
        if name == kind and len(written) == 2:
            raise Killed
        written.extend([name] * (name == kind))
        return write(recorder, name, **fields)

    with monkeypatch.context() as context:
        context.setattr(harness.Recorder, "write", killing)
        with pytest.raises(Killed):
            run()
    before = _records(path)
    with path.open("a") as file:
        file.write('{"record": "cut o')
    assert run() == 0
    after = _records(path)
    assert after[: len(before)] == before and after[-1] == {"record": "end"}
    return [record for record in after if record["record"] == kind]


def test_families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = []
    cells = {name: lambda subject, name=name: ran.append((subject.family, name)) for name in ("greedy", "sampling")}
    monkeypatch.setattr(families, "CELLS", cells)
    options = ["--family", "LLaVA", "--family", "Qwen2-VL", "--out", str(tmp_path)]
    found = _goes_on(monkeypatch, tmp_path / families.RECORDS, "cell", lambda: families.main(options))
    assert len(found) == 4 and len(ran) == 5  # the cell that was cut off ran twice


def test_traffic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from bench import gpu_cases, traffic_count
    from vs_kernels import library

    ran = []
    case = gpu_cases.Case("op", "N=1", lambda: None, 0, 0)
    a, backward, b, c = (
        case._replace(operator=name, call=lambda name=name: ran.append(name)) for name in ("a", "  backward", "b", "c")
    )
    monkeypatch.setattr(gpu_cases, "cases", lambda *_: [a, backward])
    monkeypatch.setattr(gpu_cases, "long_cases", lambda _: [b])
    monkeypatch.setattr(gpu_cases, "long_selection", lambda: c)
    monkeypatch.setattr(library, "triton_kernels", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(traffic_count, "no_host_waits", lambda: contextlib.nullcontext())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    options = ["--check", "--long-lengths", "7", "--out", str(tmp_path)]
    found = _goes_on(monkeypatch, tmp_path / "traffic.jsonl", "traffic", lambda: traffic.main(options))
    assert [record["call"] for record in found] == ["a", "a backward", "b", "c"]
    assert ran == ["a"] * 2 + ["  backward"] * 2 + ["b"] * 4 + ["c"] * 2


def test_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from bench import compile_cuda, gpu_cases, triton_compile, triton_launches
    from bench.ptxas import Resources
    from vs_kernels import library

    kernel = SimpleNamespace(fn=SimpleNamespace(__name__="gather_kernel"))
    ran = []

    def compile_for(launch, arch):
        ran.append(launch.grid)
        return triton_compile.Compiled(launch.name, arch, 128, 32, 0, 0, 16)

    def compiled(jobs):
        ran.extend(jobs)
        return [(job, [Resources("straight_through_pools", job[-5:], 40, 0, 0, 0)]) for job in jobs]

    made = [triton_launches.Launch(kernel, (n,), {"x": str(n)}, {}, (), {}) for n in range(3)]
    monkeypatch.setattr(compile_suite, "SHAPES", ((64, 64),))
    monkeypatch.setattr(gpu_cases, "cases", lambda *_: [SimpleNamespace(call=None)])
    monkeypatch.setattr(triton_launches, "launches", lambda _: made)
    monkeypatch.setattr(triton_launches, "as_on", contextlib.nullcontext)
    monkeypatch.setattr(library, "triton_kernels", contextlib.nullcontext)
    monkeypatch.setattr(triton_compile, "compile_for", compile_for)
    monkeypatch.setattr(compile_cuda, "jobs", lambda: ["a.cu for sm_80", "a.cu for sm_90"])
    monkeypatch.setattr(compile_cuda, "compiled", compiled)
    options = ["--check", "--archs", "sm_90", "--out", str(tmp_path)]
    found = _goes_on(monkeypatch, tmp_path / "compile.jsonl", "compile", lambda: compile_suite.main(options))
    assert len(found) == 5 and ran == [(0,), (1,), (2,), (2,), "a.cu for sm_80", "a.cu for sm_90"]
    assert compile_suite.main(options) == 0 and len(ran) == 6 + 5, "a whole run begins anew"


def test_quality(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench.quality import evaluate

    monkeypatch.setattr(evaluate, "correct_answers", lambda *_: torch.rand(50))
    monkeypatch.setattr(quality, "VALIDATION_SEED", 8)
    options = ["--tasks", "tiles", "--pictures", "50", "--out", str(tmp_path)]
    found = _goes_on(monkeypatch, tmp_path / quality.RECORDS, "row", lambda: quality.main(options))
    assert len({(record["method"], record["budget"]) for record in found}) == len(found) > 20
    summary = json.loads((tmp_path / quality.SUMMARY).read_text())
    assert [row["accuracy"] for row in summary["rows"]] == [record["accuracy"] for record in found]


def test_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench import serve_load, serve_server

    ran = []

    def run(address, bodies, clients):
        ran.append((address, clients))
        return Load(1.0, [Reply(0.1, 0.2, 600, 16)] * len(bodies))

    saved = SimpleNamespace(save=lambda *_: None)
    monkeypatch.setitem(sys.modules, "bench.serve_model", saved)
    monkeypatch.setattr(bench, "serve_model", saved, raising=False)
    monkeypatch.setattr(serve, "vllm_version", lambda: "0.33")
    monkeypatch.setattr(serve, "_check", lambda *_: None)
    monkeypatch.setattr(serve_server, "serve", lambda _, log, *options: contextlib.nullcontext(log.stem))
    monkeypatch.setattr(serve_load, "run", run)
    options = ["--budgets", "0.5", "0.2", "--concurrency", "3", "--rounds", "1", "--out", str(tmp_path)]
    found = _goes_on(monkeypatch, tmp_path / serve.RECORDS, "load", lambda: serve.main(options))
    assert [record["server"] for record in found] == ["all tokens", "budget 50%", "budget 20%"]
    measured = [address for address, clients in ran if clients == 3]
    assert measured == ["plain", "selecting", "selecting", "selecting"]
