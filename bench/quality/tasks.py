"""What a task of the benchmark is: pictures with questions, and which visual tokens the answer is in."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

IGNORED = -100
SPECIAL_WORDS = ("<pad>", "<eos>", "<image>", "<video>", "<vision_start>", "<vision_end>")


class Batch(NamedTuple):
    """Attributes:
    pictures: uint8 [B, H, W, 3].
    prompt: int64 [B, L], the words after the picture, the right answers but the last among them.
    labels: int64 [B, L], the answer after each word; -100 where none is asked for.
    relevant: bool [B, N], the visual tokens that the answer is in.
    shown: int64 [B, N], the word for what each visual token shows; -100 where there is none.
    """

    pictures: Tensor
    prompt: Tensor
    labels: Tensor
    relevant: Tensor
    shown: Tensor

    @property
    def words(self) -> tuple[Tensor, Tensor]:
        """prompt, labels."""
        return self.prompt, self.labels


class Task(NamedTuple):
    """Attributes:
    name: on the command line and in results.
    backbone: name of the shipped model that it is asked of.
    title: in words.
    side: visual tokens along a side of a picture.
    vocabulary: index of every word.
    training_batch: (random, size) -> a batch to train the backbone with, other questions among them.
    batch: (random, split, size) -> a batch of the task's own question; split "train" or "validation".
    """

    name: str
    backbone: str
    title: str
    side: int
    vocabulary: dict[str, int]
    training_batch: Callable[[np.random.Generator, int], Batch]
    batch: Callable[[np.random.Generator, str, int], Batch]
