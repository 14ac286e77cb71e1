import subprocess
import sys
from pathlib import Path

import pytest

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


def test_unknown_device() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--device", "abacus"])
    assert stopped.value.code == 2


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("vs-kernels")
    assert "verify" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
