import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from vs_kernels import ImportanceScorer, VisionTokenSelector, checkpoints


def selector() -> VisionTokenSelector:
    return VisionTokenSelector(ImportanceScorer(24, 10), 0.3, "straight_through_gather", "call", temperature=0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = selector().to(dtype)
    saved.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = VisionTokenSelector.from_pretrained(str(tmp_path / "new" / "folder"))
    assert loaded.config() == saved.config()
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in saved.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_loaded_selector_selects_the_same(tmp_path: Path) -> None:
    saved, tokens = selector().eval(), torch.randn(50, 24)
    saved.save_pretrained(tmp_path)
    assert torch.equal(VisionTokenSelector.from_pretrained(tmp_path)(tokens).indices, saved(tokens).indices)


def test_saving_again_replaces(tmp_path: Path) -> None:
    selector().save_pretrained(tmp_path)
    second = selector()
    second.save_pretrained(tmp_path)
    loaded = VisionTokenSelector.from_pretrained(tmp_path)
    assert torch.equal(loaded.scorer.q_proj.weight, second.scorer.q_proj.weight)


def test_saving_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selector().save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space left")

    for module, name in ((safetensors.torch, "save_file"), (checkpoints.os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(module, name, full)
            selector().save_pretrained(tmp_path)
        assert {path: path.read_bytes() for path in before} == before


def spoil_tensors(change) -> object:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def spoil_config(**change) -> object:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors there"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "no config.json there"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json: not the config"),
        (spoil_config(in_features=None), ValueError, "in_features"),
        (spoil_config(budget=7), ValueError, "budget: got 7"),
        (spoil_config(colour="red"), ValueError, "colour"),
        (spoil_config(hidden_features=11), ValueError, r"q_proj.weight has shape \(10, 24\), expected \(11, 24\)"),
        (spoil_tensors(lambda tensors: tensors.pop("scorer.k_proj.bias")), ValueError, "scorer.k_proj.bias is missing"),
        (
            spoil_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))),
            ValueError,
            r"unknown tensors \['extra'\]",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), ValueError, "model.safetensors: not a"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, spoil, error, message) -> None:
    selector().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        VisionTokenSelector.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        VisionTokenSelector.from_pretrained(name)
