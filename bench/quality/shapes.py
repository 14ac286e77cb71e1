"""Questions about a coloured shape (easy-VQA) in a picture that lies somewhere on a photo.

A picture is 128 pixels a side, 8 x 8 visual tokens; the one of easy-VQA is 64 pixels a side, at a random place. The
answer leaks into every token that the shape touches, and yes or no is often right by chance: an easy task for any
method that finds the shape at all.
"""

import re
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.quality.photos import crop, photos
from bench.quality.tasks import IGNORED, SPECIAL_WORDS, Batch, Task

SIDE, SHAPE_SIDE, TOKEN = 128, 64, 16  # pixels
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
QUESTION_WORDS = (
    "?", "a", "color", "contain", "does", "image", "in", "is", "no", "not", "of", "present", "shape", "the", "there",
    "what", "yes",
)  # fmt: skip
WORDS = [*SPECIAL_WORDS, "<answer>", *COLORS, *SHAPES, *QUESTION_WORDS]
VOCABULARY = {word: index for index, word in enumerate(WORDS)}
LONGEST = 12  # words of a question and <answer>


class Shapes(NamedTuple):
    """Attributes:
    pictures: uint8 [n, 64, 64, 3].
    covered: bool [n, 64, 64], where the shape is.
    colors: index into the vocabulary, by picture.
    questions: by picture, the words of every question and of its answer, as indices.
    """

    pictures: np.ndarray
    covered: np.ndarray
    colors: list[int]
    questions: list[list[tuple[list[int], int]]]


@cache
def shapes(split: str) -> Shapes:
    """The 4,000 pictures for training or the 1,000 for validation, as easy-VQA splits them."""
    import easy_vqa

    get = (
        (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths)
        if split == "train"
        else (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths)
    )
    paths = get[1]()
    ids = sorted(paths)
    pictures = np.stack([np.asarray(Image.open(paths[index]).convert("RGB")) for index in ids])
    place = {index: row for row, index in enumerate(ids)}
    questions: list[list[tuple[list[int], int]]] = [[] for _ in ids]
    colors = [IGNORED] * len(ids)
    for question, answer, index in zip(*get[0](), strict=True):
        words = [VOCABULARY[word] for word in re.findall(r"[a-z]+|\?", question.lower())]
        questions[place[index]].append(([*words, VOCABULARY["<answer>"]], VOCABULARY[answer]))
        if answer in COLORS:
            colors[place[index]] = VOCABULARY[answer]
    # The background is the colour of the corners; shapes do not reach them.
    covered = np.abs(pictures.astype(int) - pictures[:, :1, :1]).max(-1) > 24
    return Shapes(pictures, covered, colors, questions)


def make_batch(random: np.random.Generator, split: str, size: int) -> Batch:
    data, sources = shapes(split), photos(split, 192)
    side = SIDE // TOKEN
    pictures = np.empty((size, SIDE, SIDE, 3), np.uint8)
    relevant = np.zeros((size, side, side), bool)
    shown = np.full((size, side, side), IGNORED)
    prompt = torch.zeros(size, LONGEST, dtype=torch.long)
    labels = torch.full((size, LONGEST), IGNORED)
    for row, index in enumerate(random.integers(len(data.pictures), size=size)):
        pictures[row] = crop(random, sources[random.integers(len(sources))], SIDE)
        top, left = random.integers(SIDE - SHAPE_SIDE + 1, size=2)
        pictures[row, top : top + SHAPE_SIDE, left : left + SHAPE_SIDE] = data.pictures[index]
        covered = np.zeros((SIDE, SIDE), bool)
        covered[top : top + SHAPE_SIDE, left : left + SHAPE_SIDE] = data.covered[index]
        share = covered.reshape(side, TOKEN, side, TOKEN).mean((1, 3))
        relevant[row] = share > 0.1
        shown[row][share > 0.3] = data.colors[index]
        words, answer = data.questions[index][random.integers(len(data.questions[index]))]
        prompt[row, : len(words)] = torch.tensor(words)
        labels[row, len(words) - 1] = answer
    return Batch(
        torch.from_numpy(pictures), prompt, labels, torch.from_numpy(relevant).flatten(1),
        torch.from_numpy(shown).flatten(1),
    )  # fmt: skip


def training_batch(random: np.random.Generator, size: int) -> Batch:
    return make_batch(random, "train", size)


TASK = Task(
    "shapes", "shapes", "coloured shapes on photos (easy-VQA)", SIDE // TOKEN, VOCABULARY, training_batch, make_batch
)
