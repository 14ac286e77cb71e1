"""Checkpoints in the layouts of the published models and of public toolkits, made here in miniature."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vs_kernels import ImportanceScorer, VisionTokenSelector, checkpoints

WIDTH = 24
QWEN, LLAVA = "visual.importance_scorer.", "model.visual.importance_scorer."
CONFIGS = {
    QWEN: {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": WIDTH},
    LLAVA: {
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"],
        "model_type": "llavaonevision1_5",
        "text_config": {"hidden_size": WIDTH, "num_hidden_layers": 2},
        "vision_config": {"hidden_size": 16},
    },
}


@pytest.fixture
def scorer() -> ImportanceScorer:
    scorer = ImportanceScorer(WIDTH).bfloat16()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    return scorer


def named(scorer: ImportanceScorer, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in scorer.state_dict().items()}


def write_sharded(folder: Path, scorer: ImportanceScorer, prefix: str) -> None:
    """Three shards, of which the last two hold the scorer, and the first does not exist."""
    tensors = list(named(scorer, prefix).items())
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    weights = {shards[1]: dict(tensors[:1]), shards[2]: dict(tensors[1:]) | {"lm_head.weight": torch.zeros(4, WIDTH)}}
    index = {"metadata": {"total_size": 100}, "weight_map": {"visual.blocks.0.attn.q_proj.weight": shards[0]}}
    for shard, content in weights.items():
        save_file(content, folder / shard)
        index["weight_map"] |= dict.fromkeys(content, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIGS[prefix]))


def assert_is(selector: VisionTokenSelector, scorer: ImportanceScorer) -> None:
    assert not selector.training and all(parameter.requires_grad for parameter in selector.parameters())
    for name, tensor in scorer.state_dict().items():
        loaded = selector.scorer.state_dict()[name]
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)


@pytest.mark.parametrize("prefix", [QWEN, LLAVA])
def test_a_sharded_model_gives_its_scorer_and_reads_no_other_shard(
    tmp_path: Path, scorer: ImportanceScorer, prefix: str
) -> None:
    write_sharded(tmp_path, scorer, prefix)
    assert_is(VisionTokenSelector.from_pretrained(str(tmp_path)), scorer)


@pytest.mark.parametrize("prefix", [QWEN, LLAVA])
def test_a_model_in_one_file(tmp_path: Path, scorer: ImportanceScorer, prefix: str) -> None:
    # Projections of other modules have such names, too.
    other = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2), "visual.q_proj.weight": torch.zeros(2, 2)}
    save_file(named(scorer, prefix) | other, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[prefix]))
    assert_is(VisionTokenSelector.from_pretrained(tmp_path), scorer)


@pytest.mark.parametrize(
    "prefix", ["", QWEN, LLAVA, "module.", "_orig_mod.", "module._orig_mod.", f"module.{QWEN}", "scorer."]
)
@pytest.mark.parametrize("kind", ["safetensors", "pt", "bin"])
def test_a_file_of_the_scorer(tmp_path: Path, scorer: ImportanceScorer, prefix: str, kind: str) -> None:
    path = tmp_path / f"selector-7b.{kind}"  # the name says nothing about sizes
    if kind == "safetensors":
        save_file(named(scorer, prefix), path)
    else:
        torch.save(named(scorer, prefix), path)
    assert_is(VisionTokenSelector.from_pretrained(path), scorer)


@pytest.mark.parametrize("layout", checkpoints.LAYOUTS)
def test_export_and_back(tmp_path: Path, scorer: ImportanceScorer, layout: str) -> None:
    path = checkpoints.export(VisionTokenSelector(scorer), tmp_path / "new", layout)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["importance_scorer.safetensors"]
    assert sorted(load_file(path)) == sorted(named(scorer, checkpoints.LAYOUTS[layout]))
    assert_is(VisionTokenSelector.from_pretrained(path), scorer)


def test_export_into_a_sharded_model(tmp_path: Path, scorer: ImportanceScorer) -> None:
    write_sharded(tmp_path, scorer, QWEN)
    replaced = ImportanceScorer(WIDTH)
    before = {path: path.read_bytes() for path in tmp_path.glob("model-*.safetensors")}
    checkpoints.export(VisionTokenSelector(replaced), tmp_path, "qwen2_5_vl")
    assert_is(VisionTokenSelector.from_pretrained(tmp_path), replaced)
    assert {path: path.read_bytes() for path in before} == before
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["visual.blocks.0.attn.q_proj.weight"] == "model-00001-of-00003.safetensors"
    assert index["metadata"]["total_size"] == 100


def test_export_adds_to_the_size_of_a_model_without_a_scorer(tmp_path: Path, scorer: ImportanceScorer) -> None:
    index = {"metadata": {"total_size": 100}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoints.export(VisionTokenSelector(scorer), tmp_path, "llava_onevision_1_5")
    size = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert size == 100 + 2 * sum(parameter.numel() for parameter in scorer.parameters())


def test_errors_of_export(tmp_path: Path, scorer: ImportanceScorer) -> None:
    with pytest.raises(ValueError, match=r"^layout: got 'qwen', expected one of \['llava_onevision_1_5', 'qwen2_5_vl'"):
        checkpoints.export(VisionTokenSelector(scorer), tmp_path, "qwen")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"^directory: got a checkpoint in one model.safetensors"):
        checkpoints.export(VisionTokenSelector(scorer), tmp_path, "qwen2_5_vl")


def drop_tensor(folder: Path) -> None:
    shard = folder / "model-00003-of-00003.safetensors"
    tensors = load_file(shard)
    del tensors[QWEN + "k_proj.bias"]
    save_file(tensors, shard)


def reshape(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    save_file({name: tensor[:-1].contiguous() for name, tensor in load_file(shard).items()}, shard)


def write_config(**config: object) -> object:
    return lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"} | config))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (drop_tensor, ValueError, "tensor importance_scorer.k_proj.bias is missing"),
        (reshape, ValueError, r"has shape \(11, 24\), expected \(12, 24\) from config.json"),
        (write_config(hidden_size=32), ValueError, r"has shape \(12, 24\), expected \(16, 32\) from config.json"),
        (write_config(), ValueError, "no hidden_size"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), FileNotFoundError, "no model-00002-of"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").write_bytes(b"0"), ValueError, "not a safetens"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
            ValueError,
            "no tensor of an importance_scorer among 1; this model has no scorer",
        ),
    ],
)
def test_errors_of_a_sharded_model(tmp_path: Path, scorer: ImportanceScorer, spoil, error, message: str) -> None:
    write_sharded(tmp_path, scorer, QWEN)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        VisionTokenSelector.from_pretrained(tmp_path)


def test_errors_of_a_file(tmp_path: Path, scorer: ImportanceScorer) -> None:
    path = tmp_path / "scorer.safetensors"
    save_file(named(scorer, "") | named(ImportanceScorer(WIDTH), "module."), path)
    with pytest.raises(ValueError, match=r"two tensors for .*: .* and module\."):
        VisionTokenSelector.from_pretrained(path)
    save_file({"q_proj.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"tensor q_proj.bias is missing, found \['q_proj.weight'\]"):
        VisionTokenSelector.from_pretrained(path)
    save_file({name: tensor.flatten() for name, tensor in named(scorer, "").items()}, path)
    with pytest.raises(ValueError, match=r"q_proj.weight has shape \(288,\), expected \[h, D\]"):
        VisionTokenSelector.from_pretrained(path)
    torch.save([1], tmp_path / "scorer.pt")
    with pytest.raises(ValueError, match=r"scorer.pt: not a file of torch.save with tensors"):
        VisionTokenSelector.from_pretrained(tmp_path / "scorer.pt")
    torch.save({"q_proj.weight": torch.zeros(2, 4), 3: torch.zeros(1)}, tmp_path / "scorer.pt")
    with pytest.raises(ValueError, match=r"scorer.pt: .* names \['q_proj.weight', 3\], expected text"):
        VisionTokenSelector.from_pretrained(tmp_path / "scorer.pt")


class Code:
    """Runs where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path, scorer: ImportanceScorer) -> None:
    path = tmp_path / "scorer.pt"
    torch.save(named(scorer, "") | {"optimizer": Code()}, path)
    with pytest.raises(ValueError, match=r"scorer.pt: not a file of torch.save with tensors alone$"):
        VisionTokenSelector.from_pretrained(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"scorer.pt: not a file of torch.save with tensors alone$"):
        VisionTokenSelector.from_pretrained(path)


def test_from_the_hub_only_the_files_needed(
    tmp_path: Path, scorer: ImportanceScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    write_sharded(tmp_path, scorer, QWEN)
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append(file)
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_is(VisionTokenSelector.from_pretrained("owner/model"), scorer)
    shards = ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    assert asked == ["config.json", "model.safetensors.index.json", *shards]
    with pytest.raises(FileNotFoundError, match=r"no config.json there"):
        (tmp_path / "config.json").unlink()
        VisionTokenSelector.from_pretrained("owner/model")
