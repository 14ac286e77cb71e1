"""How many answers are right after a selection, for every method and budget."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.quality.answering import CHUNK, ENCODED, Features, correct_answers
from bench.quality.methods import Method
from bench.quality.model import encode
from bench.quality.tasks import Task
from vs_kernels import SelectionPlan, VisionTokenSelector, soft_topk

BUDGETS = (0.5, 0.3, 0.2, 0.1, 0.05)
ALL, DOWNSAMPLING = "all tokens", "downsampling"


class Row(NamedTuple):
    """Attributes:
    task, method: names.
    budget: retention budget; 1 for all tokens.
    kept: visual tokens that the language model read.
    accuracy: share of the answers that are right, the mean over pictures and seeds.
    error: standard error of the accuracy over the pictures.
    recall: share of the relevant tokens that were kept, of as many as can be; None where there is no such thing.
    by_seed: accuracy and recall of every seed.
    """

    task: str
    method: str
    budget: float
    kept: int
    accuracy: float
    error: float
    recall: float | None
    by_seed: list[tuple[float, float | None]]


def evaluate(
    backbone: nn.Module,
    task: Task,
    features: Features,
    methods: Mapping[str, Sequence[Method]],
    budgets: Sequence[float] = BUDGETS,
    at: Mapping[str, Sequence[float]] | None = None,
    known: Callable[[str, float], Row | None] = lambda method, budget: None,
) -> Iterator[Row]:
    """The rows of a task: all tokens, every method, each with one function a seed, and downsampling.

    Args:
        at: by method, the only budgets to evaluate it at.
        known: the row of a method and budget that was evaluated before, and is yielded as it was.
    """

    def all_tokens() -> Row:
        shares = correct_answers(backbone, task.side, features.tokens, None, *features.batch.words)
        return _row(task, ALL, 1.0, features.tokens.shape[1], [shares], [None])

    yield known(ALL, 1.0) or all_tokens()
    for budget in budgets:
        rows = {name: known(name, budget) for name in methods if at is None or budget in at.get(name, budgets)}
        chosen = {
            name: [choose(features, budget) for choose in methods[name]] for name, row in rows.items() if row is None
        }
        outcomes = _outcomes(backbone, task, features, [indices for group in chosen.values() for indices in group])
        for name, row in rows.items():
            if row is None:
                group = chosen[name]
                recalls = [recall(features.batch.relevant, indices) for indices in group]
                row = _row(task, name, budget, group[0].shape[1], [next(outcomes) for _ in group], recalls)
            yield row
        side = math.isqrt(SelectionPlan.from_budget([task.side**2], budget).total_kept)
        yield known(DOWNSAMPLING, budget) or _row(
            task, DOWNSAMPLING, budget, side**2, [_downsampled(backbone, task, features, side)], [None]
        )


def _outcomes(backbone: nn.Module, task: Task, features: Features, choices: Sequence[Tensor]) -> Iterator[Tensor]:
    """What is right, float64 [n], after each of the choices [n, k]; a picture with the same tokens is read once."""
    if not choices:
        return
    number = len(features.tokens)
    pictures = torch.arange(number).repeat(len(choices))
    distinct, case = torch.cat([pictures[:, None], torch.cat([*choices])], dim=1).unique(dim=0, return_inverse=True)
    shares = []
    for part in distinct.split(CHUNK):
        rows, indices = part[:, 0], part[:, 1:]
        words = (part[rows] for part in features.batch.words)
        tokens = features.tokens[rows[:, None], indices]
        shares.append(correct_answers(backbone, task.side, tokens, indices, *words))
    yield from torch.cat(shares)[case].split(number)


def recall(relevant: Tensor, indices: Tensor) -> float:
    """Share of the relevant tokens [n, N] among the kept ones [n, k], of as many as k can be."""
    possible = relevant.sum(1).clamp(max=indices.shape[1]).sum().item()
    return relevant.gather(1, indices).sum().item() / possible


def soft_accuracy(
    backbone: nn.Module,
    task: Task,
    features: Features,
    selector: VisionTokenSelector,
    budget: float,
    temperature: float,
) -> float:
    """Accuracy with all tokens, each times its soft Top-K probability."""
    scores = selector.scorer(features.tokens)
    plan = SelectionPlan.dense(*scores.shape, budget=budget)
    probs, _ = soft_topk(scores, plan, temperature)
    shares = correct_answers(backbone, task.side, features.tokens * probs[..., None], None, *features.batch.words)
    return shares.mean().item()


@torch.no_grad()
def _downsampled(backbone: nn.Module, task: Task, features: Features, side: int) -> Tensor:
    """What is right when the picture itself is made so small that it has ``side * side`` visual tokens."""
    pictures = features.batch.pictures
    pixels = side * pictures.shape[1] // task.side
    tokens = []
    for part in pictures.split(ENCODED):
        channels_first = part.permute(0, 3, 1, 2).float()
        small = F.interpolate(channels_first, (pixels, pixels), mode="bilinear", antialias=True)
        tokens.append(encode(backbone, small.round().permute(0, 2, 3, 1)))
    return correct_answers(backbone, side, torch.cat(tokens), None, *features.batch.words)


def _row(task: Task, method: str, budget: float, kept: int, outcomes: list[Tensor], recalls: list[float | None]) -> Row:
    shares = torch.stack(outcomes).mean(0)
    error = (shares.std() / math.sqrt(len(shares))).item()
    known = [value for value in recalls if value is not None]
    by_seed = [(outcome.mean().item(), value) for outcome, value in zip(outcomes, recalls, strict=True)]
    mean_recall = sum(known) / len(known) if known else None
    return Row(task.name, method, budget, kept, shares.mean().item(), error, mean_recall, by_seed)
