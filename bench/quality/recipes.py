"""Trains selectors on cached features, each by one recipe of the library or by one that it is compared with."""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from bench.quality.answering import Answering, Features
from bench.quality.tasks import Task
from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.training import RECIPES, Curriculum, Recipe, Schedule, SelectorTraining

BUDGET, STEPS, BATCH, LEARNING_RATE, WARM_UP = 0.2, 80, 32, 5e-4, 0.03
# Four times as many steps on a quarter of the pictures each.
SMALL_BATCHES = {"soft, small batches": 8}

PLAIN_GATHER = Recipe("straight_through_gather", Curriculum())
PHASES: dict[str, list[Recipe]] = {
    "soft": [RECIPES["soft"]],
    "gather": [RECIPES["gather"]],
    "gather, plain": [PLAIN_GATHER],
    "gather, scale only": [Recipe("straight_through_gather", Curriculum(scale=0.3))],
    "gather, noise only": [Recipe("straight_through_gather", Curriculum(noise=Schedule(1.0, 0.2)))],
    "soft, small batches": [RECIPES["soft"]],
    "mask": [RECIPES["mask"]],
    "blend": [RECIPES["blend"]],
    "soft, then gather": [RECIPES["soft"], PLAIN_GATHER],
    "score function": [RECIPES["score_function"]],
}


class Trained(NamedTuple):
    """Attributes:
    selector: in eval mode.
    step_seconds: process time of a step, the mean.
    """

    selector: VisionTokenSelector
    step_seconds: float


def new_selector(width: int, seed: int) -> VisionTokenSelector:
    torch.manual_seed(seed)
    return VisionTokenSelector(ImportanceScorer(width), BUDGET)


def train_selector(
    backbone: nn.Module,
    task: Task,
    features: Features,
    recipe: str,
    seed: int,
    steps: int = STEPS,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    budget: tuple[float, float] | None = None,
) -> Trained:
    """Train a fresh selector; seed and step decide what it sees and which noise it gets.

    Args:
        recipe: one of ``PHASES``, whose phases share the steps equally.
        budget: drawn anew for every step from this range; None: always ``BUDGET``.
    """
    selector = new_selector(features.tokens.shape[-1], seed)
    answering = Answering(backbone, task, selector.train())
    phases = PHASES[recipe]
    phase_steps = steps // len(phases)
    optimizer = torch.optim.AdamW(selector.parameters(), learning_rate, weight_decay=0.0)
    started = time.process_time()
    training: SelectorTraining | None = None
    for step in range(phase_steps * len(phases)):
        phase, local = divmod(step, phase_steps)
        if local == 0:
            selector.train_mode = phases[phase].train_mode
            training = SelectorTraining(answering, replace(phases[phase].curriculum, budget=budget, seed=seed))
        assert training is not None
        training.start_step(local, phase_steps)
        rows = np.random.default_rng([seed, step]).choice(len(features.tokens), batch, replace=False)
        part = features[torch.from_numpy(rows)]
        loss = training(labels=part.batch.labels, tokens=part.tokens, prompt=part.batch.prompt)["loss"]
        rate = min(1.0, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Trained(selector.eval(), (time.process_time() - started) / steps)
