"""The faults of the published implementation that are not of the model integration; the others are tested beside it."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import prompt, qwen2_5_vl

import vs_kernels as vk
from vs_kernels import SelectionPlan
from vs_kernels.integrations.transformers import attach_selector


def scorer(width: int) -> vk.ImportanceScorer:
    made = vk.ImportanceScorer(width)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_fault_7_inference_runs_no_soft_search() -> None:
    model = qwen2_5_vl()
    selector = vk.VisionTokenSelector(scorer(64), 0.5).eval()
    inputs = prompt([5, ("image", 1, 4, 4), 3])
    with (
        mock.patch.object(vk.selector, "soft_topk_with_loss", side_effect=AssertionError),
        mock.patch.object(vk.selector, "topk_consistency_loss", side_effect=AssertionError),
        attach_selector(model, selector),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        model(**inputs)
    names = {event.name for event in profile.events()}
    assert "vs_kernels::select_tokens" in names
    assert not {name for name in names if "soft_topk" in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_8_soft_probabilities_sum_to_k(dtype: torch.dtype) -> None:
    tokens, plan = torch.randn(2000, 32).to(dtype), SelectionPlan([1500, 500], [300, 25])
    probs, _ = vk.soft_topk(scorer(32).to(dtype)(tokens, plan), plan)
    sums = torch.stack([pool.double().sum() for pool in probs.split(plan.lengths)])
    torch.testing.assert_close(sums, torch.tensor(plan.ks, dtype=torch.float64), rtol=1e-6, atol=0)


def test_fault_10_imports_need_neither_flash_attn_nor_a_gpu() -> None:
    code = (
        "import sys\n"
        "sys.modules['flash_attn'] = None\n"  # an import of it raises
        "import vs_kernels, vs_kernels.baselines, vs_kernels.integrations.transformers\n"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})


def test_fault_11_a_checkpoint_without_a_scorer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl", "hidden_size": 32}')
    save_file({"lm_head.weight": torch.zeros(2, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"tensor importance_scorer.q_proj.weight is missing, found \['lm_head.weight'"
    ):
        vk.VisionTokenSelector.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["Qwen2.5-VL-3b", "Qwen2.5-VL-7b", "anything"])
def test_fault_12_sizes_come_from_the_config_not_from_the_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 40}}')
    tensors = {f"visual.importance_scorer.{key}": value for key, value in scorer(40).state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    loaded = vk.VisionTokenSelector.from_pretrained(folder)
    assert (loaded.scorer.in_features, loaded.scorer.hidden_features) == (40, 20)


def test_fault_13_no_n_by_n_matrix() -> None:
    """Of 16,384 tokens it would be 1 GiB; scoring and selecting allocate less than 1 % of that."""
    selector, tokens = vk.VisionTokenSelector(scorer(16), 0.2).eval(), torch.randn(16384, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        selector(tokens)
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < 16384 * 16384 * 4 // 100


def test_fault_14_a_checkpoint_is_the_scorer_alone(tmp_path: Path) -> None:
    model, selector = qwen2_5_vl(), vk.VisionTokenSelector(scorer(64))
    with attach_selector(model, selector):
        selector.save_pretrained(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    tensors = sum(parameter.nbytes for parameter in selector.parameters())
    assert tensors < size < tensors + 2000
    assert tensors < sum(parameter.nbytes for parameter in model.parameters()) / 10
