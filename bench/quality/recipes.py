"""Trains selectors on cached features, each by one recipe of the library or by one that it is compared with."""

import math
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.quality.answering import Answering, Features
from bench.quality.tasks import IGNORED, Task
from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.training import RECIPES, Curriculum, Recipe, Schedule, SelectorTraining

BUDGET, STEPS, BATCH, LEARNING_RATE, WARM_UP = 0.2, 120, 32, 5e-4, 0.03

PLAIN_GATHER = Recipe("straight_through_gather", Curriculum())
PHASES: dict[str, list[Recipe]] = {
    "soft": [RECIPES["soft"]],
    "gather": [RECIPES["gather"]],
    "gather, plain": [PLAIN_GATHER],
    "gather, scale only": [Recipe("straight_through_gather", Curriculum(scale=0.3))],
    "gather, noise only": [Recipe("straight_through_gather", Curriculum(noise=Schedule(1.0, 0.2)))],
    "mask": [RECIPES["mask"]],
    "blend": [RECIPES["blend"]],
    "soft, then gather": [RECIPES["soft"], PLAIN_GATHER],
}
SCORE_FUNCTION = "score function"


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
        recipe: one of ``PHASES``, which share the steps equally, or ``SCORE_FUNCTION``.
        budget: drawn anew for every step from this range; None: always ``BUDGET``.
    """
    selector = new_selector(features.tokens.shape[-1], seed)
    answering = Answering(backbone, task, selector.train())
    phases = PHASES.get(recipe, [RECIPES["gather"]])
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
        if recipe == SCORE_FUNCTION:
            loss = score_function_loss(training, answering, part)
        else:
            loss = training(labels=part.batch.labels, tokens=part.tokens, prompt=part.batch.prompt)["loss"]
        rate = min(1.0, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Trained(selector.eval(), (time.process_time() - started) / steps)


def score_function_loss(training: SelectorTraining, answering: Answering, part: Features) -> Tensor:
    """REINFORCE with two noisy selections of every picture, each the baseline of the other; no backward through the
    language model."""
    selector, noise = answering.selector, training.settings.noise
    chosen, losses = [], []
    for _ in range(2):
        with torch.no_grad():
            output = answering(part.tokens, part.batch.prompt, part.batch.labels)
        indices = answering.last_selection["image"].indices
        assert indices is not None
        chosen.append(torch.zeros(part.tokens.shape[:2]).flatten().index_fill_(0, indices, 1.0))
        by_word = F.cross_entropy(output.logits.flatten(0, 1), part.batch.labels.flatten(), reduction="none")
        by_word = by_word.view(part.batch.labels.shape)
        losses.append(by_word.sum(1) / (part.batch.labels != IGNORED).sum(1))
    selection = selector(part.tokens.flatten(0, 1), [part.tokens.shape[1]] * len(part.tokens), answering.budget)
    # The score of a Gumbel Top-K draw is its mask less the soft one, over the noise; the soft one cancels between two.
    advantage = (losses[0] - losses[1]) / (2 * noise * len(part.tokens))
    signal = advantage.repeat_interleave(part.tokens.shape[1]) * (chosen[0] - chosen[1])
    assert selection.loss is not None
    return (selection.scores.flatten() * signal).sum() + training.settings.loss_weight * selection.loss
