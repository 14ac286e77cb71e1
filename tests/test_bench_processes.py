"""A suite in several processes, for the comparison of two results."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import processes
from bench.__main__ import main
from bench.results import load


@pytest.fixture
def ended(monkeypatch):
    """Exit codes of the processes to come, and the command lines of those that ran."""
    codes, ran = [], []

    def run(command, env):
        ran.append(command[1:])
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(run=run))
    return codes, ran


def test_every_process_has_a_directory_and_the_largest_exit_code_counts(ended, tmp_path):
    codes, ran = ended
    codes += [0, 1, 0]
    assert main(["shapes", "--quick", "--processes", "3", "--out", str(tmp_path)]) == 1
    shared = ["-m", "bench", "shapes", "--quick", "--out"]
    assert ran == [[*shared, str(tmp_path / number)] for number in "123"]


def test_an_interrupted_run_goes_on_with_the_process_that_was_cut_off(ended, tmp_path, capsys):
    codes, ran = ended
    codes += [0, 130, 0, 0]
    arguments = ["shapes", "--processes=3", "--out", str(tmp_path)]
    assert main(arguments) == 130 and main(arguments) == 0
    assert [command[-1][-1] for command in ran] == ["1", "2", "2", "3"]
    assert "process 1: done before the interruption" in capsys.readouterr().out
    codes += [0, 0, 0]  # a whole run begins anew
    assert main(arguments) == 0 and len(ran) == 7


def test_a_wrong_command_line_ends_with_the_first_process(ended, tmp_path, capsys):
    codes, ran = ended
    codes.append(2)
    assert main(["shapes", "--nosuch", "--processes", "5", "--out", str(tmp_path)]) == 2 and len(ran) == 1
    with pytest.raises(SystemExit) as stopped:
        main(["shapes", "--processes", "0"])
    assert stopped.value.code == 2
    assert "python -m bench shapes: argument --processes: got '0', expected an integer >= 1" in capsys.readouterr().err


def test_the_records_of_real_processes_are_one_result(tmp_path):
    options = ["--quick", "--modes", "forward", "--operators", "topk_indices", "--out", str(tmp_path / "here")]
    command = [sys.executable, "-m", "bench", "shapes", "--processes", "2", *options]
    subprocess.run(command, check=True, capture_output=True)
    runs = load(tmp_path / "here")
    assert [(run.suite, run.path.parent.name, run.whole) for run in runs] == [
        ("shapes", "1", True),
        ("shapes", "2", True),
    ]
