"""The plugin through lmms-eval's own command line: a tiny Qwen2.5-VL on disk and a task made of files here.

lmms-eval is not among the requirements of the test suite, as it brings a hundred packages; `make test-lmms-eval` runs
these tests in an environment that has it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vs_kernels import ImportanceScorer, VisionTokenSelector, checkpoints

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

TASK = """
task: tiny_vqa
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  until: []
process_results: !function utils.process_results
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["path"]).convert("RGB")]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def process_results(doc, results):
    return {"exact_match": float(results[0] == doc["answer"])}
"""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL of two layers with its processor, bytes as tokens, and a scorer in the published layout."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), fast, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    ids = dict(zip(SPECIAL, fast.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    made = Qwen2_5_VLForConditionalGeneration(config)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder, max_shard_size="100KB")
    scorer = ImportanceScorer(64)
    torch.nn.init.normal_(scorer.q_proj.weight)
    torch.nn.init.normal_(scorer.k_proj.weight)
    checkpoints.export(VisionTokenSelector(scorer), folder, "qwen2_5_vl")
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "task"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(3):
        pixels = torch.randint(0, 256, (112, 140, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        lines.append({"path": str(folder / f"{i}.png"), "question": f"What is {i}?", "answer": "x"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tiny_vqa.yaml").write_text(TASK.format(folder=folder))
    (folder / "utils.py").write_text(UTILS)
    return folder


def run(task: Path, out: Path, model_name: str, arguments: str) -> list[dict[str, Any]]:
    """The samples that lmms-eval logs."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model_name, "--model_args", arguments]
    command += ["--tasks", "tiny_vqa", "--include_path", str(task), "--batch_size", "1", "--log_samples"]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home"), "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output_path", str(out)], env=os.environ | quiet, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    samples = list(out.glob("**/*samples_tiny_vqa.jsonl"))
    assert len(samples) == 1, done.stderr[-4000:]  # lmms-eval logs its errors and exits with 0
    return [json.loads(line) for line in samples[0].read_text().splitlines()]


def test_budgets_through_the_command_line(model: Path, task: Path, tmp_path: Path) -> None:
    pixels = f"pretrained={model},device=cpu,device_map=cpu,min_pixels=3136,max_pixels=50176"
    alone = run(task, tmp_path / "alone", "qwen2_5_vl", pixels)
    answers = {}
    for budget in (1.0, 0.2):
        samples = run(task, tmp_path / str(budget), "qwen2_5_vl_selected", f"{pixels},budget={budget}")
        answers[budget] = [sample["filtered_resps"] for sample in samples]
        assert len(samples) == 3
    assert answers[1.0] == [sample["filtered_resps"] for sample in alone]
    assert answers[0.2] != answers[1.0]
