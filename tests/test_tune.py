"""Tile sizes: the table, the file of ``vs-kernels tune``, and the tuner with a timer that has a favourite."""

import json
from pathlib import Path

import pytest
import torch
from backends import HAS_TRITON, use_backend

from vs_kernels.cli import main

if not HAS_TRITON:
    pytest.skip("Triton is not installed", allow_module_level=True)

from vs_kernels.kernels import tiles
from vs_kernels.kernels.tiles import DEFAULT, TABLE, Tile, tile_of
from vs_kernels.kernels.tune import candidates, tune

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tiles.json"
    monkeypatch.setenv(tiles.FILE_VARIABLE, str(path))
    tiles.forget_file()
    yield path
    tiles.forget_file()


def test_every_architecture_has_every_kernel(file: Path) -> None:
    for table in TABLE.values():
        assert table.keys() == DEFAULT.keys()
        assert all(size & (size - 1) == 0 for tile in table.values() for size in tile)


def test_a_tile_is_no_wider_than_the_row(file: Path) -> None:
    assert tile_of("row_dots", 3584, CPU) == DEFAULT["row_dots"]
    assert tile_of("row_dots", 72, CPU).columns == 128
    assert tile_of("row_dots", 1, CPU).columns == 16


def test_the_tuner_writes_its_favourites_and_launchers_read_them(file: Path) -> None:
    file.write_text(json.dumps({"sm_90": {"rows": [2, 512, 4]}}))

    def few_rows(call) -> float:
        call()
        return sum(tile.rows * tile.num_warps for tile in tiles._FORCED.values())

    with use_backend("triton"):
        found = {kernel: tile for kernel, tile, *_ in tune(CPU, 32, 24, file, few_rows)}
    assert found.keys() == DEFAULT.keys()
    assert all(tile.rows == max(1, DEFAULT[kernel].rows // 2) for kernel, tile in found.items())
    assert tile_of("rows", 4096, CPU) == found["rows"] != DEFAULT["rows"]
    assert json.loads(file.read_text())["sm_90"] == {"rows": [2, 512, 4]}


def test_candidates_surround_the_table() -> None:
    found = candidates(Tile(8, 1024, 4))
    assert Tile(8, 1024, 4) in found and Tile(16, 512, 8) in found and len(found) == len(set(found)) == 27


def test_a_broken_file_is_named(file: Path) -> None:
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"tiles\.json: got .*, expected what `vs-kernels tune` writes"):
        tile_of("rows", 64, CPU)


def test_the_command_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["tune"]) == 2
    assert "vs-kernels tune: torch finds no CUDA or ROCm device" in capsys.readouterr().err
