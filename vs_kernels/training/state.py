"""A training on disk: everything that an exact resumption needs."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vs_kernels.training.module import SelectorTraining


def save_training(path: str | Path, training: SelectorTraining, step: int, **parts: Any) -> None:
    """Write the scorer, the number of steps done, random states and ``parts``; whole or not at all.

    Args:
        parts: objects with a ``state_dict``: the optimizer, and a scheduler, a gradient scaler, a data loader.
    """
    path = Path(path)
    state = {
        "selector": training.state_dict(),
        "config": training.selector.config(),
        "curriculum": asdict(training.curriculum),
        "step": step,
        "random": torch.get_rng_state(),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    partial = path.with_name(f"{path.name}.partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_training(path: str | Path, training: SelectorTraining, **parts: Any) -> int:
    """Take up a training where :func:`save_training` left it.

    Returns:
        number of steps done: the step to go on with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another curriculum, or of other parts.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file, expected what save_training writes")
    state = torch.load(path, map_location="cpu", weights_only=True)
    curriculum = asdict(training.curriculum)
    if state["curriculum"] != curriculum:
        changed = [name for name, value in curriculum.items() if state["curriculum"].get(name) != value]
        raise ValueError(f"{path}: of a training with another curriculum, which differs in {changed}")
    if set(state["parts"]) != set(parts):
        raise ValueError(f"parts: got {sorted(parts)}, expected {sorted(state['parts'])}, those in {path}")
    training.load_state_dict(state["selector"])
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    return state["step"]
