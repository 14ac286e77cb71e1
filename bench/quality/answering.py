"""The language model half of a backbone with a selector in front of it, on vision features that were made once."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.quality.model import answer_logits, encode_with_attention
from bench.quality.tasks import IGNORED, Batch, Task
from vs_kernels.selection import Selection
from vs_kernels.selector import VisionTokenSelector

CHUNK = 50  # pictures
ENCODED = 10  # pictures at once: the vision encoder has 576 patches of each, and more would not fit the caches


class Features(NamedTuple):
    """Pictures of a task as a backbone sees them.

    Attributes:
        tokens: float32 [n, N, D].
        attention: float32 [n, N], received in the last block of the vision encoder.
        batch: the pictures with their questions.
    """

    tokens: Tensor
    attention: Tensor
    batch: Batch

    def __getitem__(self, rows) -> "Features":  # type: ignore[override]
        return Features(self.tokens[rows], self.attention[rows], Batch(*(part[rows] for part in self.batch)))


def make_features(model: nn.Module, task: Task, split: str, number: int, seed: int) -> Features:
    """Features of ``number`` new pictures; a longer set begins like a shorter one of the same ``seed``."""
    chunks, encoded = [], []
    for start in range(0, number, CHUNK):
        batch = task.batch(np.random.default_rng([seed, start]), split, min(CHUNK, number - start))
        chunks.append(batch)
        encoded += [encode_with_attention(model, part) for part in batch.pictures.split(ENCODED)]
    tokens, attention = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return Features(tokens, attention, Batch(*(torch.cat(parts) for parts in zip(*chunks, strict=True))))


class Answering(nn.Module):
    """What ``attach_selector(..., train=True)`` makes of a model, from features on; also its own handle.

    ``model(tokens=..., prompt=..., labels=...)`` selects and answers; ``.loss`` of the output is the answers'
    cross-entropy. See :class:`vs_kernels.training.SelectorTraining` for the attributes of a handle.
    """

    def __init__(self, backbone: nn.Module, task: Task, selector: VisionTokenSelector):
        super().__init__()
        self.backbone, self.task, self.selector = backbone, task, selector
        self.budget: float | None = None
        self.last_selection: dict[str, Selection] = {}

    @property
    def model(self) -> "Answering":
        return self

    @property
    def loss(self) -> Tensor | None:
        return self.last_selection["image"].loss

    def row_losses(self, output: SimpleNamespace, labels: Tensor) -> Tensor:
        by_word = F.cross_entropy(output.logits.transpose(1, 2), labels, reduction="none")
        return by_word.sum(1) / (labels != IGNORED).sum(1)

    def token_rows(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        batch, number, _ = inputs["tokens"].shape
        return {"image": torch.arange(batch).repeat_interleave(number)}

    def forward(self, tokens: Tensor, prompt: Tensor, labels: Tensor) -> SimpleNamespace:
        batch, number, _ = tokens.shape
        rows = tokens.flatten(0, 1)
        selection = self.selector(rows, [number] * batch, self.budget)
        self.last_selection = {"image": selection}
        indices = None
        if selection.indices is not None:
            starts = torch.arange(batch).repeat_interleave(torch.tensor(selection.plan.ks)) * number
            indices = (selection.indices - starts).view(batch, -1)
        logits = answer_logits(
            self.backbone, selection.tokens.view(batch, -1, tokens.shape[-1]), indices, self.task.side, prompt
        )
        return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits=logits)


@torch.no_grad()
def correct_answers(
    backbone: nn.Module,
    side: int,
    tokens: Tensor,  # [n, k, D]
    indices: Tensor | None,  # int64 [n, k], places of the tokens among side * side; None: all
    prompt: Tensor,  # int64 [n, L], as the labels, of a Batch
    labels: Tensor,
) -> Tensor:
    """float64 [n], the share of every picture's answers that are right.

    An answer of several words is read word by word, each after the right ones before it.
    """
    shares = []
    for start in range(0, len(tokens), CHUNK):
        rows = slice(start, start + CHUNK)
        places = None if indices is None else indices[rows]
        logits = answer_logits(backbone, tokens[rows], places, side, prompt[rows])
        asked = labels[rows] != IGNORED
        shares.append(((logits.argmax(-1) == labels[rows]) & asked).sum(1).double() / asked.sum(1))
    return torch.cat(shares)
