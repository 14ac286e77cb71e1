"""Trains the small model of a task; resumable, and the same to the last bit whether interrupted or not."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.quality.model import answer_logits, encode, small_model
from bench.quality.tasks import IGNORED, Batch, Task

BATCH = 32
LEARNING_RATE = 2e-3
SAVE_EVERY = 100  # steps
WARM_UP = 50  # steps
NAMING = 0.25  # share of the steps in which only the vision encoder learns
READING = 0.4  # share of the steps after which the language model reads more than a little beside the relevant tokens
DROPPING = 0.7  # share of the later steps in which it reads a random part of the tokens, unless told otherwise


def train_backbone(
    task: Task,
    path: Path,
    steps: int,
    stop: int | None = None,
    seed: int = 0,
    dropping: float = DROPPING,
    log: Callable[..., None] = print,
) -> None:
    """Train a model and write it to ``path``; what is unfinished lies beside it and is taken up again.

    First the vision encoder learns to name what every visual token shows. Then the whole model learns to answer, with
    a few tokens more than the relevant ones, and at last with whole pictures, or mostly a random part of them, half of
    the time with all the relevant tokens: a language model that never met a visual sequence without its evidence is
    lost with one.

    Args:
        stop: end after so many of the ``steps``.
        dropping: share of the steps with whole pictures in which the language model reads a random part of them.
    """
    torch.manual_seed(seed)
    model = small_model(task.vocabulary, seed)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    unfinished, first = path.with_suffix(".unfinished"), 0
    if unfinished.is_file():
        state = torch.load(unfinished)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise ValueError(
                f"{unfinished}: of {state['steps']} steps with seed {state['seed']}, expected {steps}, {seed}"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    losses: list[float] = []
    stop = steps if stop is None else stop
    for step in range(first, stop):
        random = np.random.default_rng([seed, step])
        batch = task.training_batch(random, BATCH)
        tokens = encode(model, batch.pictures)
        loss = _naming_loss(model, tokens, batch)
        if step / steps >= NAMING:
            loss = _answer_loss(model, task, tokens, batch, random, step / steps, dropping) + 0.1 * loss
        rate = min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < stop:
            _replace(unfinished, lambda file, done=step + 1: torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "steps": steps,
                 "seed": seed}, file
            ))  # fmt: skip
            log(f"{path.stem}: step {step + 1} of {steps}, loss {sum(losses[-SAVE_EVERY:]) / SAVE_EVERY:.3f}")
    save_backbone(model, path)
    unfinished.unlink(missing_ok=True)


def _naming_loss(model: torch.nn.Module, tokens: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the word for every visual token; every word counts the same, however often it is shown."""
    named = batch.shown != IGNORED
    logits = model.lm_head(F.rms_norm(tokens[named], tokens.shape[-1:]))
    words = batch.shown[named]
    weights = 1 / words.bincount(minlength=logits.shape[-1]).clamp(min=1)
    return F.cross_entropy(logits, words, weight=weights)


def _answer_loss(
    model: torch.nn.Module,
    task: Task,
    tokens: Tensor,
    batch: Batch,
    random: np.random.Generator,
    progress: float,
    dropping: float,
) -> Tensor:
    reading = progress < READING
    indices = None
    if reading or random.random() < dropping:
        share = random.uniform(0.05, 0.2 if reading else 1.0)
        rank = torch.from_numpy(random.random(batch.relevant.shape))
        if reading or random.random() < 0.5:
            rank += batch.relevant
        least = int(batch.relevant.sum(1).max())
        indices = rank.topk(max(least, int(tokens.shape[1] * share))).indices.sort().values
        tokens = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
    logits = answer_logits(model, tokens, indices, task.side, batch.prompt)
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


def save_backbone(model: torch.nn.Module, path: Path) -> None:
    """Write the weights in half precision, without the head, which is the embedding."""
    from safetensors.torch import save_file

    tensors = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    _replace(path, lambda file: save_file(tensors, file))


def load_backbone(task: Task, path: Path) -> torch.nn.Module:
    """The frozen model, float32, in eval mode."""
    from safetensors.torch import load_file

    model = small_model(task.vocabulary)
    model.load_state_dict(load_file(path), strict=False)  # lm_head is the embedding
    return model.eval().requires_grad_(False)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    os.replace(partial, path)
