"""Training steps of a selector in front of a frozen model, by the library's recipes and by the published one."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from bench import published
from bench.harness import Clock, Mark, Seconds
from bench.ops_verify import WrongResult
from bench.subject import Subject
from vs_kernels import ImportanceScorer, SelectionPlan, VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.selection import Selection
from vs_kernels.training import RECIPES, SelectorTraining

BUDGET = 0.2
ANSWER_TOKENS = 8  # at the end of the prompt, which the loss is taken of
TOLERANCE = 1e-3  # relative, of a loss and a gradient in float32 behind all layers of the model


class PublishedSelector(VisionTokenSelector):
    """Soft training as published: the N x N matrix, 64 bisections, a mask by sorting."""

    def _train(self, tokens: Tensor, plan: SelectionPlan) -> Selection:
        scores = published.importance_scores(tokens, *self.scorer.weights())
        probs = published.soft_topk(scores, plan.total_kept)
        loss = published.topk_consistency_loss(probs, scores, plan.total_kept)
        return Selection(tokens * probs[:, None], None, scores, probs, loss, plan)


PUBLISHED, GATHERED = "published soft recipe", "straight-through, gathered"
RECIPE_OF = {
    PUBLISHED: "soft",
    "soft": "soft",
    GATHERED: "gather",
    "straight-through, masked": "mask",
    "score function": "score_function",
}
PROVIDERS = tuple(RECIPE_OF)


class Step(NamedTuple):
    """One step: its times, with and without the vision encoder; its loss; gradient of the scorer's query weight."""

    whole: Seconds
    without_vit: Seconds
    loss: Tensor
    gradient: Tensor


class Trainee:
    """A selector under training in ``subject``; made anew for every step, so that all steps do the same."""

    def __init__(self, subject: Subject, provider: str, seed: int = 0):
        recipe = RECIPES[RECIPE_OF[provider]]
        torch.manual_seed(seed)
        scorer = ImportanceScorer(subject.selector.scorer.in_features)
        make = PublishedSelector if provider == PUBLISHED else VisionTokenSelector
        self.selector = make(scorer, BUDGET, recipe.train_mode)
        self.handle = attach_selector(subject.model, self.selector, train=True)
        self.training = SelectorTraining(self.handle, recipe.curriculum)
        self.training.start_step(0, 100)
        self.optimizer = torch.optim.AdamW(self.selector.parameters(), 5e-5, weight_decay=0.0)
        labels = subject.inputs["input_ids"].clone()
        labels[:, :-ANSWER_TOKENS] = -100
        self.inputs = {**subject.inputs, "labels": labels}

    def forward(self) -> Tensor:
        return self.training(**self.inputs)["loss"]

    def __enter__(self) -> "Trainee":
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.detach()


def timed_step(subject: Subject, provider: str, clock: Clock) -> Step:
    """One step: forward, backward, optimizer."""
    with Trainee(subject, provider) as trainee, _vit_marks(subject, clock) as vit:
        clock.synchronize()
        start = clock.mark()
        loss = trainee.forward()
        loss.backward()
        trainee.optimizer.step()
        end = clock.mark()
        clock.synchronize()
        whole = clock.between(start, end)
        inside = [clock.between(*marks) for marks in zip(vit[::2], vit[1::2], strict=True)]
        gradient = trainee.selector.scorer.q_proj.weight.grad
        if gradient is None or not gradient.isfinite().all() or not gradient.any() or not loss.isfinite():
            raise WrongResult(f"{provider}: no gradient reached the scorer, or it is not finite")
        rest = Seconds(*(total - sum(part) for total, part in zip(whole, zip(*inside, strict=True), strict=True)))
        return Step(whole, rest, loss.detach(), gradient.detach())


@contextmanager
def _vit_marks(subject: Subject, clock: Clock):
    """A list that gets a mark where the vision encoder begins and one where it ends, for every call of it."""
    marks: list[Mark] = []
    visual = subject.model.model.visual
    hooks = [
        visual.register_forward_pre_hook(lambda *_: marks.append(clock.mark())),
        visual.register_forward_hook(lambda *_: marks.append(clock.mark())),
    ]
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def check_soft(ours: Step, theirs: Step) -> None:
    """The library's soft recipe is the published one: same loss, same gradient."""
    for name, mine, other in (("loss", ours.loss, theirs.loss), ("gradient", ours.gradient, theirs.gradient)):
        error = float((mine - other).norm() / other.norm())
        if not error <= TOLERANCE:
            raise WrongResult(f"soft: its {name} is off by {error:.1e} of the published recipe's")
