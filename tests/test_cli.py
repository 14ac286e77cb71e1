import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vs_kernels import cli, library, verify


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in verify.CALLS:
        assert name in out
    assert (library.CPU_PROBLEM or f"instruction set {library.cpu_isa()}") in out


def test_verify_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "every operator agrees with float64" in out
    assert out.count(" ok\n") == 5 + 3 * 5


def test_verify_fails_on_a_wrong_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.CALLS["soft_topk"]
    monkeypatch.setitem(
        verify.CALLS,
        "soft_topk",
        lambda ops, x: right(ops, x) if ops is verify.reference else tuple(1.001 * out for out in right(ops, x)),
    )
    assert cli.main(["verify", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.count("WRONG") == 1 and "1 of the lines above are wrong" in out


def test_a_gpu_is_verified_with_long_pools_and_by_both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CUDA_PROBLEM", None)
    names = {"short": set(), "long": set()}
    for check in cli.checks("cuda"):
        names[check.pools].add((check.name, check.by_triton))
    both = {("straight_through_gather", True), ("straight_through_mask", True)}
    assert names["short"] == names["long"] == {(name, False) for name in verify.CALLS} | both
    monkeypatch.setattr(library, "CUDA_PROBLEM", "not built")
    assert not any(check.by_triton for check in cli.checks("cuda"))
    assert {check.pools for check in cli.checks("cpu")} == {"short"}


def test_long_pools_are_verified_without_their_matrix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.PLANS, "long", ([300, 5, 0, 170], [60, 1, 0, 9]))
    monkeypatch.setattr(cli, "checks", lambda _: [cli.Check(n, "long", torch.float32, False) for n in verify.CALLS])
    monkeypatch.setattr(verify.reference, "importance_scores", lambda *_: pytest.fail("N x N"))
    assert cli.main(["verify", "--device", "cpu"]) == 0
    right = verify.reference.importance_scores_collapsed
    monkeypatch.setattr(
        verify.reference, "importance_scores_collapsed", lambda *args: (1.001 * right(*args)[0], *right(*args)[1:])
    )
    capsys.readouterr()
    assert cli.main(["verify", "--device", "cpu"]) == 1
    wrong = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert wrong == ["importance_scores", "select_tokens"]


def test_unknown_device() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--device", "abacus"])
    assert stopped.value.code == 2


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("vs-kernels")
    assert "verify" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
