"""Selectors on disk: ours, the published layouts inside of a full checkpoint, and files of a scorer alone.

A directory of ours is ``config.json`` and ``model.safetensors``. The published checkpoints hold the four tensors of the
scorer beside those of the whole model, in shards.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs_kernels.scorer_files import Reader, scorer_tensors
from vs_kernels.selector import ImportanceScorer, VisionTokenSelector

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
EXPORTED = "importance_scorer.safetensors"
LAYOUTS = {"qwen2_5_vl": "visual.importance_scorer.", "llava_onevision_1_5": "model.visual.importance_scorer."}


def save(selector: VisionTokenSelector, directory: str | Path, is_main_process: bool = True) -> None:
    """Write the selector into ``directory``; each file appears whole or not at all."""
    tensors = {name: _whole(tensor) for name, tensor in selector.state_dict().items()}
    if not is_main_process:
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_tensors(tensors, directory / WEIGHTS)
    _write_json(selector.config(), directory / CONFIG)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor without its graph; all of it, where processes share it out among them, who must then all save."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach()


def export(selector: VisionTokenSelector, directory: str | Path, layout: str) -> Path:
    """Write the scorer under the published names into ``directory``, and enter it in the index of a checkpoint there.

    Args:
        directory: an empty or new one, or one with a full sharded checkpoint, which then has one shard more; no other
            file of it is read or written.
        layout: ``"qwen2_5_vl"`` or ``"llava_onevision_1_5"``.

    Returns:
        The file written, ``importance_scorer.safetensors``.

    Raises:
        ValueError: an unknown layout, or a full checkpoint without an index.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, expected one of {sorted(LAYOUTS)}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    index_path = directory / INDEX
    if (directory / WEIGHTS).is_file() and not index_path.is_file():
        raise ValueError(
            f"directory: got a checkpoint in one {WEIGHTS}, which is read without an index, expected a sharded one "
            "or an empty directory"
        )
    tensors = {LAYOUTS[layout] + name: tensor for name, tensor in selector.scorer.state_dict().items()}
    _write_tensors(tensors, directory / EXPORTED)
    if index_path.is_file():
        index = _read_json(index_path)
        added = sum(tensor.nbytes for name, tensor in tensors.items() if name not in index["weight_map"])
        index["weight_map"] |= dict.fromkeys(tensors, EXPORTED)
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += added
        _write_json(index, index_path)
    return directory / EXPORTED


def load(path_or_hub_id: str | Path) -> VisionTokenSelector:
    """The selector of a directory, hub repository or file, in eval mode, on the CPU, in the dtype it was saved in."""
    path = Path(path_or_hub_id)
    if path.is_file():
        with Reader([path]) as reader:
            return _of_tensors(scorer_tensors(reader, str(path)), str(path), None)
    find = _finder(path_or_hub_id)
    config_path = find(CONFIG)
    if config_path is None:
        raise FileNotFoundError(
            f"{path_or_hub_id}: no {CONFIG} there; expected what VisionTokenSelector.save_pretrained writes, or a "
            "checkpoint of a model with a scorer"
        )
    config = _read_json(config_path)
    if isinstance(config, dict) and ("architectures" in config or "model_type" in config):
        return _of_model(config, config_path, find)
    weights = find(WEIGHTS)
    if weights is None:
        raise FileNotFoundError(
            f"{path_or_hub_id}: no {WEIGHTS} there; expected what VisionTokenSelector.save_pretrained writes"
        )
    selector = _from_config(config, config_path)
    with Reader([weights]) as reader:
        unknown = sorted(set(reader.names) - set(selector.state_dict()))
        if unknown:
            raise ValueError(f"{weights}: unknown tensors {unknown}, expected {sorted(selector.state_dict())}")
        tensors = scorer_tensors(reader, str(weights), wanted=lambda name: f"scorer.{name}")
    return _fill(selector, tensors, str(weights), CONFIG)


def _of_model(config: dict[str, Any], config_path: Path, find: Callable[[str], Path | None]) -> VisionTokenSelector:
    """From a full checkpoint in the published layout: only the shards with the scorer are read."""
    text = config.get("text_config")
    width = (text if isinstance(text, dict) else config).get("hidden_size")
    if not isinstance(width, int):
        raise ValueError(f"{config_path}: no hidden_size, the width of the visual tokens, in it or in its text_config")
    index_path = find(INDEX)
    if index_path is not None:
        weight_map = _read_json(index_path)["weight_map"]
        shards = sorted({shard for name, shard in weight_map.items() if ".importance_scorer." in f".{name}"})
        if not shards:
            raise ValueError(
                f"{index_path}: no tensor of an importance_scorer among {len(weight_map)}; this model has no scorer"
            )
        source = index_path
    else:
        shards, source = [WEIGHTS], config_path.parent / WEIGHTS
    paths = [(shard, find(shard)) for shard in shards]
    missing = [shard for shard, path in paths if path is None]
    if missing:
        raise FileNotFoundError(f"{source}: no {', '.join(missing)} beside it")
    with Reader([path for _, path in paths if path is not None]) as reader:
        tensors = scorer_tensors(reader, str(source), only="importance_scorer")
    return _of_tensors(tensors, str(source), width)


def _of_tensors(tensors: dict[str, Tensor], source: str, width: int | None) -> VisionTokenSelector:
    """A selector with tensors of one scorer; ``width`` of the visual tokens where a config says it."""
    hidden, in_features = tensors["q_proj.weight"].shape if tensors["q_proj.weight"].dim() == 2 else (0, 0)
    if width is not None:
        hidden, in_features = width // 2, width
    elif not hidden:
        raise ValueError(f"{source}: q_proj.weight has shape {tuple(tensors['q_proj.weight'].shape)}, expected [h, D]")
    with torch.device("meta"):
        selector = VisionTokenSelector(ImportanceScorer(in_features, hidden))
    return _fill(selector, tensors, source, CONFIG if width is not None else "q_proj.weight")


def _fill(selector: VisionTokenSelector, tensors: dict[str, Tensor], source: str, sizes: str) -> VisionTokenSelector:
    for name, expected in selector.scorer.state_dict().items():
        got, wanted = tuple(tensors[name].shape), tuple(expected.shape)
        if got != wanted:
            raise ValueError(f"{source}: {name} has shape {got}, expected {wanted} from {sizes}")
    selector.scorer.load_state_dict(tensors, assign=True)
    for parameter in selector.parameters():
        parameter.requires_grad_(True)
    return selector.eval()


def _from_config(config: Any, path: Path) -> VisionTokenSelector:
    try:
        sizes = config.pop("in_features"), config.pop("hidden_features")
        # meta: the values come from the file, so none are drawn here
        with torch.device("meta"):
            scorer = ImportanceScorer(*sizes)
        return VisionTokenSelector(scorer, **config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the config of a selector: {error!r}") from error


def _finder(path_or_hub_id: str | Path) -> Callable[[str], Path | None]:
    """A function from the name of a file to its path, None where there is none; from the hub, one file at a time."""
    directory, name = Path(path_or_hub_id), str(path_or_hub_id)
    if directory.is_dir():
        return lambda file: directory / file if (directory / file).is_file() else None
    if isinstance(path_or_hub_id, Path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: no such directory")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            return None

    return download


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        kind = "the config of a selector" if path.name == CONFIG else "JSON"
        raise ValueError(f"{path}: not {kind}: {error!r}") from error


def _write_json(value: Any, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    partial = path.with_name(f"{path.name}.partial")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, partial, {"format": "pt"})
    os.replace(partial, path)
