"""The fourteen faults of the published implementation, one test for each."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import ATTENTIONS, CLIP, LOGIT_TOLERANCE, SMALL, TWO_AND_ONE, full_positions, make_selector
from safetensors.torch import save_file
from tiny_models import VIDEO, prompt, qwen2_5_vl
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import vs_kernels as vk
from vs_kernels import SelectionPlan
from vs_kernels.integrations.transformers import SelectorHandle, attach_selector


def scorer(width: int) -> vk.ImportanceScorer:
    made = vk.ImportanceScorer(width)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_fault_1_text_only_and_inputs_embeds(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt([6])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(**inputs).logits)
    new = model.generate(inputs_embeds=embeds, max_new_tokens=3)
    assert torch.equal(new, model.generate(**inputs, max_new_tokens=3)[:, 6:])


def test_fault_2_rows_of_a_batch_select_for_themselves(attached: SelectorHandle) -> None:
    model = attached.model
    rows = [prompt(row, seed=seed) for seed, row in enumerate(TWO_AND_ONE)]
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {
        name: torch.cat([nn.functional.pad(row[name], (length - row[name].shape[1], 0)) for row in rows])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    } | {name: torch.cat([row[name] for row in rows]) for name in ("pixel_values", "image_grid_thw")}
    together = model(**batch).logits[:, -1]
    alone = torch.cat([model(**row).logits[:, -1] for row in rows])
    torch.testing.assert_close(together, alone, **LOGIT_TOLERANCE)


def test_fault_3_image_and_video_in_one_prompt(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt([5, CLIP, 3, SMALL, 4, CLIP, 2])
    inputs["second_per_grid_ts"] = torch.tensor([1.0, 2.0])
    model(**inputs)
    assert {name: selection.plan.lengths for name, selection in attached.last_selection.items()} == {
        "image": (16,),
        "video": (48, 48),
    }
    columns = attached.last_prompt.columns[0]
    assert torch.equal(attached.last_prompt.position_ids[:, 0], full_positions(model, inputs)[:, 0, columns])


def test_fault_4_text_between_videos_stays(attached: SelectorHandle) -> None:
    inputs = prompt([5, CLIP, 3, CLIP, 4, CLIP, 2])
    attached.model(**inputs)
    columns = attached.last_prompt.columns[0]
    text = (inputs["input_ids"][0] != VIDEO).nonzero().flatten()
    assert set(text.tolist()) <= set(columns.tolist())
    assert len(columns) == len(text) + 3 * 24


@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask"])
def test_fault_5_training_on_video(mode: str) -> None:
    model, inputs = qwen2_5_vl(), prompt([5, CLIP, 3, CLIP, 4], [2, CLIP, 2])
    selector = make_selector(train_mode=mode).train()
    with attach_selector(model, selector, budget=0.2) as handle:
        (model(**inputs, labels=inputs["input_ids"]).loss + handle.loss).backward()
    assert selector.scorer.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("image", [("image", 1, 1, 1), ("image", 1, 2, 2), SMALL])
@pytest.mark.parametrize("budget", [0.2, 1.0])
@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask", "eval"])
def test_fault_6_extreme_budgets_and_tiny_images(image: tuple[Any, ...], budget: float, mode: str) -> None:
    model, inputs = qwen2_5_vl(), prompt([5, image, 3])
    selector = make_selector(train_mode="soft" if mode == "eval" else mode).train(mode != "eval")
    with attach_selector(model, selector, budget):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        model.generate(**inputs, max_new_tokens=2)
    assert loss.isfinite()


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
    # Nothing waits for the device: a tensor without values raises where one is asked for.
    with FakeTensorMode(allow_non_fake_inputs=True):
        kept = selector(torch.empty(20, 64), [12, 8])
    assert kept.tokens.shape == (10, 64) and kept.indices.shape == (10,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fault_8_soft_probabilities_sum_to_k(dtype: torch.dtype) -> None:
    tokens, plan = torch.randn(2000, 32).to(dtype), SelectionPlan([1500, 500], [300, 25])
    probs, _ = vk.soft_topk(scorer(32).to(dtype)(tokens, plan), plan)
    sums = torch.stack([pool.double().sum() for pool in probs.split(plan.lengths)])
    torch.testing.assert_close(sums, torch.tensor(plan.ks, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_fault_9_the_cache_holds_the_compact_prompt(attention: str) -> None:
    model, inputs = qwen2_5_vl(attention), prompt(*TWO_AND_ONE)
    masks = []
    with attach_selector(model, make_selector(), budget=0.2) as handle:
        model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
        )
        result = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
        length = handle.last_prompt.length
        assert length == 5 + 3 + 4 + 2 * 2 + 3 + 4
        assert result.past_key_values.get_seq_length() == length + 3
        assert masks == [length, length + 1, length + 2, length + 3]


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
