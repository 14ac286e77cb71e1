"""Selectors on disk: ``config.json`` and ``model.safetensors``."""

import json
import os
from pathlib import Path

import torch

from vs_kernels.selector import ImportanceScorer, VisionTokenSelector

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(selector: VisionTokenSelector, directory: str | Path, is_main_process: bool = True) -> None:
    """Write the selector into ``directory``; each file appears whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: _whole(tensor).contiguous().cpu() for name, tensor in selector.state_dict().items()}
    if not is_main_process:
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, directory / WEIGHTS)
    partial = directory / f"{CONFIG}.partial"
    partial.write_text(json.dumps(selector.config(), indent=2) + "\n")
    os.replace(partial, directory / CONFIG)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without its graph; all of it, where processes share it out among them, who must then all save."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach()


def load(directory_or_hub_id: str | Path) -> VisionTokenSelector:
    """The selector of a directory or hub repository, in eval mode, on the CPU, in the dtype it was saved in."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = _local_directory(directory_or_hub_id)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory}: no {name} there; expected what VisionTokenSelector.save_pretrained writes"
            )
    selector = _from_config(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS}: not a safetensors file: {error}") from error
    expected = selector.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise ValueError(f"{directory / WEIGHTS}: tensor {name} is missing, found {sorted(tensors)}")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{directory / WEIGHTS}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)} from {CONFIG}"
            )
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ValueError(f"{directory / WEIGHTS}: unknown tensors {unknown}, expected {sorted(expected)}")
    selector.load_state_dict(tensors, assign=True)
    for parameter in selector.parameters():
        parameter.requires_grad_(True)
    return selector.eval()


def _from_config(path: Path) -> VisionTokenSelector:
    try:
        config = json.loads(path.read_text())
        sizes = config.pop("in_features"), config.pop("hidden_features")
        # meta: the values come from the file, so none are drawn here
        with torch.device("meta"):
            scorer = ImportanceScorer(*sizes)
        return VisionTokenSelector(scorer, **config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the config of a selector: {error!r}") from error


def _local_directory(directory_or_hub_id: str | Path) -> Path:
    directory = Path(directory_or_hub_id)
    if directory.is_dir():
        return directory
    name = str(directory_or_hub_id)
    if isinstance(directory_or_hub_id, Path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: no such directory")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
