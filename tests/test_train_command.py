"""``vs-kernels train`` on a few pictures, and what it says about wrong files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import HIDDEN_SIZE, IMAGE, PAD, qwen2_5_vl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

from bench.tiny_families import EOS
from vs_kernels import VisionTokenSelector, cli
from vs_kernels.training.config import read_config
from vs_kernels.training.data import Collator, Conversations

EXAMPLES = Path(__file__).parent.parent / "examples"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start><image><end> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<stop> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
WORDS = ["what", "is", "this", "?", "a", "red", "cat", "user", "assistant", ":", "two", "dogs", "and"]
ANSWER = "a red cat"


class Processor:
    """What the collator needs of a processor, around a tokenizer of single words."""

    image_token = "<image>"

    def __init__(self) -> None:
        vocabulary = {f"unused{index}": index for index in range(100)}
        special = {"<pad>": PAD, "<stop>": EOS, "<image>": IMAGE, "<start>": 92, "<end>": 93}
        words = {word: 10 + index for index, word in enumerate(WORDS)} | special
        vocabulary = {name: index for name, index in vocabulary.items() if index not in words.values()} | words
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="unused3"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(list(special))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", chat_template=TEMPLATE)
        self.image_processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)

    def apply_chat_template(self, *args, **kwargs):
        return self.tokenizer.apply_chat_template(*args, **kwargs)

    def __call__(self, text, images, padding, return_tensors):
        pixels = {}
        if images is not None:
            flat = [image for row in images for image in row]
            pixels = dict(self.image_processor(images=flat, return_tensors=return_tensors))
            counts = iter((pixels["image_grid_thw"].prod(1) // 4).tolist())
            text = ["".join(p + "<image>" * next(counts) for p in row.split("<image>")[:-1]) + row.split("<image>")[-1]
                    for row in text]  # fmt: skip
        return dict(self.tokenizer(text, padding=padding, return_tensors=return_tensors)) | pixels


def record(image: str | list[str] | None = "cat.png", answer: str = ANSWER, question: str = "what is this ?") -> dict:
    names = [image] if isinstance(image, str) else image or []
    turns = [{"from": "human", "value": "<image>\n" * len(names) + question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | ({"image": image} if image else {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, four conversations about two pictures, and the configuration of a training."""
    qwen2_5_vl().save_pretrained(tmp_path / "model")
    Image.effect_noise((84, 112), 80).save(tmp_path / "cat.png")
    Image.effect_noise((56, 56), 80).save(tmp_path / "dog.png")
    lines = [record(), record("dog.png", "two dogs"), record(["cat.png", "dog.png"], "a cat and dogs"), record(None)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_config(tmp_path)
    return tmp_path


def write_config(folder: Path, **changes) -> Path:
    config = {
        "model": str(folder / "model"), "data": "data.jsonl", "output": "out", "recipe": "gather", "budget": 0.25,
        "dtype": "float32", "curriculum": {"noise": {"start": 1.0, "end": 0.0}},
        "arguments": {
            "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "save_steps": 2, "use_cpu": True,
            "disable_tqdm": True, "dataloader_pin_memory": False, "learning_rate": 1e-3,
        },
    }  # fmt: skip
    config = {name: value for name, value in (config | changes).items() if value is not None}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    from vs_kernels.training import run as module

    monkeypatch.setattr(module, "load_processor", lambda config: Processor())
    return cli.main(["train", str(folder / "train.yaml"), *options])


def test_it_trains_a_selector_and_goes_on_from_a_checkpoint(folder, monkeypatch, capsys):
    assert run(folder, monkeypatch) == 0
    assert f"selector: {folder / 'out' / 'selector'}" in capsys.readouterr().out
    whole = VisionTokenSelector.from_pretrained(folder / "out" / "selector")
    assert whole.scorer.in_features == HIDDEN_SIZE and whole.scorer.q_proj.weight.abs().max() > 5e-4
    assert (whole.train_mode, whole.budget) == ("straight_through_gather", 0.25)
    for name in ("checkpoint-4", "selector"):
        (folder / "out" / name).rename(folder / f"old-{name}")
    assert run(folder, monkeypatch, "--resume") == 0
    resumed = VisionTokenSelector.from_pretrained(folder / "out" / "selector")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_two_processes_of_torchrun_train_what_one_does(folder, monkeypatch):
    """Equal shares of pictures and words in both, so that their mean is that of the whole batch; no noise."""
    names = [f"{index}.png" for index in range(8)]
    for name in names:
        Image.effect_noise((84, 112), 80).save(folder / name)
    lines = [record(name, answer) for name, answer in zip(names, ["a red cat", "two red dogs"] * 4, strict=True)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = yaml.safe_load((folder / "train.yaml").read_text())["arguments"]
    for output, size in (("one", 4), ("two", 2)):
        path = write_config(
            folder, output=output, recipe="soft", curriculum=None,
            arguments=arguments | {"per_device_train_batch_size": size, "learning_rate": 1e-2},
        )  # fmt: skip
        if output == "one":
            assert run(folder, monkeypatch) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = Path(__file__).with_name("train_process.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[1])}
    done = subprocess.run([*torchrun, worker, path], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-600:]

    one, two = (VisionTokenSelector.from_pretrained(folder / output / "selector") for output in ("one", "two"))
    assert one.scorer.q_proj.weight.abs().max() > 1e-2
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    logs = [(folder / output / "training.jsonl").read_text().splitlines() for output in ("one", "two")]
    for expected, got in zip(*logs, strict=True):
        for name in ("loss", "answer_loss", "consistency_loss"):
            assert json.loads(got)[name] == pytest.approx(json.loads(expected)[name], rel=1e-5)
    saved = [sorted(path.name for path in (folder / output).iterdir()) for output in ("one", "two")]
    assert saved[0] == saved[1] == ["checkpoint-2", "checkpoint-4", "selector", "training.jsonl"]


def test_labels_are_the_answers(folder):
    data, processor = Conversations(folder / "data.jsonl"), Processor()
    for end_of_answer in (False, True):
        batch = Collator(processor, end_of_answer)([data[index] for index in range(4)])
        for row, answer in enumerate(("a red cat", "two dogs", "a cat and dogs", "a red cat")):
            learnt = batch["labels"][row][batch["labels"][row] != -100]
            assert processor.tokenizer.decode(learnt).split() == answer.split() + ["<stop>"] * end_of_answer
        assert batch["image_grid_thw"].shape == (4, 3)
        assert batch["labels"].shape == batch["input_ids"].shape


@pytest.mark.parametrize("name", ["train.yaml", "train_published.yaml"])
def test_the_shipped_configurations_can_be_read(name):
    config = read_config(EXAMPLES / name)
    assert config.schedules().at(0, 10).loss_weight == 0.1
    assert config.data == str(EXAMPLES / "data/conversations.jsonl")


def test_the_plain_loop_of_the_examples(folder, monkeypatch):
    import transformers

    spec = importlib.util.spec_from_file_location("train_selector", EXAMPLES / "train_selector.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: Processor())
    monkeypatch.setattr(example, "STEPS", 2)
    monkeypatch.setattr(example, "BATCH", 2)
    example.main(str(folder / "model"), str(folder / "data.jsonl"), str(folder / "plain"))
    assert VisionTokenSelector.from_pretrained(folder / "plain").scorer.q_proj.weight.abs().max() > 1.5e-4
    assert len((folder / "plain" / "training.jsonl").read_text().splitlines()) == 2


def spoil(folder: Path, text: str) -> None:
    with (folder / "data.jsonl").open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: spoil(f, '{"image": "cat.png", "conver'), "data.jsonl:5: not a JSON object: Unterminated string"),
        (lambda f: spoil(f, json.dumps(record("no.png"))), "data.jsonl:5: no such image: "),
        (lambda f: spoil(f, json.dumps(record(None) | {"image": "cat.png"})), "data.jsonl:5: got 0 <image> marks"),
        (lambda f: spoil(f, "[1]"), "data.jsonl:5: got "),
        (lambda f: spoil(f, '{"conversations": [{"from": "human", "value": "hm"}]}'), "data.jsonl:5: got no turn of"),
        (lambda f: (f / "cat.png").write_bytes(b"no"), "data.jsonl:"),
        (lambda f: (f / "data.jsonl").write_text("\n"), "data.jsonl: got no lines"),
        (lambda f: write_config(f, data="none.jsonl"), "none.jsonl: no such file"),
        (lambda f: write_config(f, recipe="magic"), "train.yaml: recipe: got 'magic', expected one of"),
        (lambda f: write_config(f, budget=3), "train.yaml: budget: got 3"),
        (lambda f: write_config(f, colour="red"), "train.yaml: got ['colour'], expected names among"),
        (lambda f: write_config(f, model=None), "train.yaml: model: got nothing, expected a value"),
        (lambda f: write_config(f, curriculum={"noise": -1}), "train.yaml: noise: got -1"),
        (lambda f: (f / "train.yaml").write_text("a: 1\nb: [1"), "train.yaml:2: not YAML: "),
        (lambda f: (f / "train.yaml").unlink(), "train.yaml: no such file"),
    ],
)
def test_an_error_names_file_and_line(folder, change, message, monkeypatch, capsys):
    change(folder)
    assert run(folder, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "vs-kernels train: " in error and message in error and "Traceback" not in error


def test_a_picture_that_breaks_later_loses_nothing(folder, monkeypatch, capsys):
    write_config(folder, arguments=yaml.safe_load((folder / "train.yaml").read_text())["arguments"] | {"save_steps": 1})
    lines = [json.dumps(record())] * 3 + [json.dumps(record("late.png"))]
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "late.png").write_bytes((folder / "cat.png").read_bytes()[:500])
    assert run(folder, monkeypatch) == 2
    assert "data.jsonl:4: not a readable image" in capsys.readouterr().err
    if (folder / "out" / "checkpoint-1").is_dir():  # the order of the data decides whether there was a step before
        VisionTokenSelector.from_pretrained(folder / "out" / "checkpoint-1" / "selector")
