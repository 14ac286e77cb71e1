"""The setting is checked where the server starts, and changes nothing where it is absent."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from requests_and_truth import image
from safetensors.torch import load_file, save_file
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs

from vs_kernels import ImportanceScorer, VisionTokenSelector, checkpoints
from vs_kernels.integrations.vllm import hook


def config(model: Path, setting: Any = None, **options: Any) -> VllmConfig:
    extra = {} if setting is None else {"vs_kernels": setting}
    arguments = EngineArgs(
        model=str(model), dtype="float32", max_model_len=2048, additional_config=extra, enforce_eager=True, **options
    )
    return arguments.create_engine_config()


def test_vllm_finds_the_plugin() -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="vs_kernels")
    assert plugin.value == "vs_kernels.integrations.vllm:register"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_without_the_setting_nothing_changes(models: dict[str, Path], name: str) -> None:
    model = config(models[name]).model_config
    assert not model.hf_config.architectures[0].startswith(hook.PREFIX)
    assert not model.multimodal_config.is_multimodal_pruning_enabled()


def test_settings_reach_the_config_of_the_model(models: dict[str, Path]) -> None:
    model = config(models["qwen2_5_vl"], {"selector": str(models["selector"]), "budget": 0.5}).model_config
    assert model.hf_config.architectures == ["VsKernelsQwen2_5_VLForConditionalGeneration"]
    settings = model.hf_config.vs_kernels
    assert (settings["selector"], settings["budget"]) == (str(models["selector"]), 0.5)


def test_the_budget_of_the_selector_is_the_default(models: dict[str, Path]) -> None:
    assert config(models["qwen2_5_vl"], {"selector": str(models["selector"])}).model_config.hf_config.vs_kernels[
        "budget"
    ] == pytest.approx(0.2)


def test_a_checkpoint_with_a_scorer_needs_no_selector(models: dict[str, Path], tmp_path: Path) -> None:
    for file in models["qwen2_5_vl"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scorer = load_file(models["selector"] / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {f"visual.importance_{name}": tensor for name, tensor in scorer.items()}
    save_file(weights | renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert config(tmp_path, {"budget": 0.3}).model_config.hf_config.vs_kernels["selector"] == str(tmp_path)


WRONG = {
    "no object": (0.2, "vs_kernels: got 0.2, expected an object"),
    "unknown key": ({"budgets": 0.2}, "vs_kernels: got the keys ['budgets'], expected ['selector', 'budget']"),
    "budget of zero": ({"selector": "uniform_grid", "budget": 0}, "vs_kernels.budget: got 0, expected a number in"),
    "budget in words": ({"selector": "uniform_grid", "budget": "0.2"}, "vs_kernels.budget: got str"),
    "selector is a number": ({"selector": 1}, "vs_kernels.selector: got int"),
    "no such folder": ({"selector": "./nowhere"}, "vs_kernels.selector: ./nowhere: no such directory"),
    "no scorer in the model": ({"budget": 0.2}, "vs_kernels.selector"),
}


@pytest.mark.parametrize(("setting", "message"), WRONG.values(), ids=WRONG)
def test_wrong_settings_stop_the_start(models: dict[str, Path], setting: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as error:
        config(models["qwen2_5_vl"], setting)
    assert message in str(error.value)


def test_a_scorer_of_another_width(models: dict[str, Path], tmp_path: Path) -> None:
    VisionTokenSelector(ImportanceScorer(64)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens with 64 features, expected 128"):
        config(models["qwen2_5_vl"], {"selector": str(tmp_path)})


def test_not_beside_pruning_of_vllm(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"video_pruning_rate: got 0.3 with vs_kernels"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"}, video_pruning_rate=0.3)


def test_no_budget_for_all_requests_in_the_options_of_the_processor(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"expected it in vs_kernels.budget"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"}, mm_processor_kwargs={"budget": 0.3})


def test_adapters_of_the_language_model_alone(models: dict[str, Path]) -> None:
    config(models["qwen2_5_vl"], {"selector": "uniform_grid"}, enable_lora=True)
    with pytest.raises(ValueError, match="enable_tower_connector_lora: got True"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"}, enable_lora=True, enable_tower_connector_lora=True)


def test_a_model_that_reads_text_alone(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="a model that reads text alone"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"}, language_model_only=True)


def test_another_architecture(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "ARCHITECTURES", {"Another": ""})
    with pytest.raises(ValueError, match=r"got a model Qwen2_5_VLForConditionalGeneration, expected one of"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"})


@pytest.mark.parametrize("version", ["0.31.1", "0.34.0", "unknown"])
def test_another_version_of_vllm(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(hook, "vllm_version", lambda: version)
    config(models["qwen2_5_vl"])
    with pytest.raises(ValueError, match=f"vs_kernels: got vLLM {version}, expected >=0.32,<0.34"):
        config(models["qwen2_5_vl"], {"selector": "uniform_grid"})


def test_a_vllm_without_a_place_for_the_setting_gets_a_warning() -> None:
    code = """
import sys, types
sys.modules["vllm.config"] = types.ModuleType("vllm.config")
from vs_kernels.integrations.vllm import register
register()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "has no place for the setting 'vs_kernels', which needs vLLM >=0.32,<0.34" in result.stderr + result.stdout


def test_the_digest_follows_the_weights(models: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(2)
    other = VisionTokenSelector(ImportanceScorer(128))
    checkpoints.save(other, tmp_path)
    digests = {
        json.dumps(config(models["qwen2_5_vl"], {"selector": str(folder)}).model_config.hf_config.vs_kernels["digest"])
        for folder in (models["selector"], tmp_path)
    }
    assert len(digests) == 2


def keys(model: Path, setting: dict[str, Any], uuid: str | None = None, **options: Any) -> str:
    """The key of one image in the caches."""
    processor = MULTIMODAL_REGISTRY.create_processor(config(model, setting).model_config)
    items = processor.info.parse_mm_data({"image": [image(112, 140)]})
    uuids = None if uuid is None else {"image": [uuid]}
    (key,) = processor._get_mm_hashes(ProcessorInputs([], items, uuids, options))["image"]
    return key


@pytest.mark.parametrize("uuid", [None, "a name that the client gave"])
def test_the_key_of_an_image_follows_budget_and_scorer(models: dict[str, Path], uuid: str | None) -> None:
    model, selector = models["qwen2_5_vl"], str(models["selector"])
    plain = keys(model, {"selector": selector, "budget": 0.5}, uuid)
    assert keys(model, {"selector": selector, "budget": 0.5}, uuid) == plain
    assert keys(model, {"selector": selector, "budget": 0.2}, uuid) != plain
    assert keys(model, {"selector": "uniform_grid", "budget": 0.5}, uuid) != plain
    assert keys(model, {"selector": selector, "budget": 0.2}, uuid, budget=0.5) == plain
