"""Handwritten digits (scikit-learn) on paper, to be read from left to right, among photo clutter or photo tiles.

A picture is 192 pixels a side: 12 x 12 slots of 16 pixels, one visual token each. Six slots, one in each sixth of the
width, hold a digit on plain paper. ``clutter`` fills the rest with one photo. ``tiles`` leaves it plain and puts 90
tiles cut from photos on it, 40 of them with a digit scrawled over the photo, which does not count: 40 visual tokens
that show a digit as clearly as the six that matter, more than a budget of 0.2 can hold.

The second question, from which training photo the clutter or most of the tiles are, is only there to train backbones:
a model that was never asked about the photos would have learnt to see nothing in them.
"""

from functools import cache, partial

import numpy as np
import torch

from bench.quality.photos import PHOTOS, crop, photos, textured_tiles
from bench.quality.tasks import IGNORED, SPECIAL_WORDS, Batch, Task

SIDE, SLOT = 192, 16  # pixels
SLOTS = SIDE // SLOT
DIGITS = 6
DISTRACTORS, SCRAWLED = 90, 40
TILES_A_PHOTO = 600
KINDS = ("clutter", "tiles")

WORDS = [*SPECIAL_WORDS, "<digits>", "<photo>", *map(str, range(10)), *PHOTOS["train"]]
VOCABULARY = {word: index for index, word in enumerate(WORDS)}


@cache
def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, float [n, 8, 8] in [0, 1] and their digits [n]; 1,437 for training and 360 others for validation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(5).permutation(len(data.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    return data.images[chosen] / 16, data.target[chosen]


def make_batch(
    random: np.random.Generator, split: str, size: int, kind: str, photo_questions: float = 0.0, jitter: bool = False
) -> Batch:
    """``size`` pictures with one question each.

    Args:
        kind: ``"clutter"`` or ``"tiles"``.
        photo_questions: share of pictures that are asked for their photo instead of their digits.
        jitter: move the strokes of digits by up to a pixel, for variety.
    """
    images, targets = handwriting(split)
    sources = photos(split, SIDE)
    pictures = np.empty((size, SIDE, SIDE, 3), np.uint8)
    relevant = np.zeros((size, SLOTS, SLOTS), bool)
    shown = np.full((size, SLOTS, SLOTS), IGNORED)
    prompt = torch.zeros(size, DIGITS, dtype=torch.long)
    labels = torch.full((size, DIGITS), IGNORED)
    for row in range(size):
        about_photo = random.random() < photo_questions
        photo = int(random.integers(len(sources)))
        places = [(int(random.integers(SLOTS)), 2 * sixth + int(random.integers(2))) for sixth in range(DIGITS)]
        if kind == "clutter":
            pictures[row] = crop(random, sources[photo], SIDE)
            shown[row] = _photo_word(split, photo)
        else:
            pictures[row], shown[row] = _tiles(random, split, photo, places)
        chosen = random.integers(len(targets), size=DIGITS)
        for (y, x), index in zip(places, chosen, strict=True):
            _slot(pictures[row], y, x)[:] = _draw(random, images[index], jitter)
            relevant[row, y, x] = True
            shown[row, y, x] = VOCABULARY[str(targets[index])]
        if about_photo:
            prompt[row, 0] = VOCABULARY["<photo>"]
            labels[row, 0] = _photo_word(split, photo)
        else:
            answer = torch.tensor([VOCABULARY[str(targets[index])] for index in chosen])
            prompt[row, 0] = VOCABULARY["<digits>"]
            prompt[row, 1:] = answer[:-1]
            labels[row] = answer
    return Batch(
        torch.from_numpy(pictures),
        prompt,
        labels,
        torch.from_numpy(relevant).flatten(1),
        torch.from_numpy(shown).flatten(1),
    )


def _slot(picture: np.ndarray, y: int, x: int) -> np.ndarray:
    return picture[y * SLOT : (y + 1) * SLOT, x * SLOT : (x + 1) * SLOT]


def _photo_word(split: str, photo: int) -> int:
    return VOCABULARY.get(PHOTOS[split][photo], IGNORED)


def _tiles(
    random: np.random.Generator, split: str, photo: int, reserved: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """A plain picture with photo tiles outside of the reserved slots, half of them at least from ``photo``.

    Returns:
        uint8 [192, 192, 3] and the words of the slots, [12, 12].
    """
    pool = textured_tiles(split, SIDE, SLOT, TILES_A_PHOTO)
    images, targets = handwriting(split)
    source = np.where(np.arange(DISTRACTORS) % 2, photo, random.integers(len(pool), size=DISTRACTORS))
    tiles = pool[source, random.integers(TILES_A_PHOTO, size=DISTRACTORS)].astype(np.float32)
    words = np.array([_photo_word(split, index) for index in source])
    digits = random.integers(len(targets), size=SCRAWLED)
    ink = np.where(tiles[:SCRAWLED].mean((1, 2, 3)) > 110, 0, 255)[:, None, None, None]
    tiles[:SCRAWLED] += (ink - tiles[:SCRAWLED]) * 0.9 * _strokes(images[digits])
    words[:SCRAWLED] = [VOCABULARY[str(digit)] for digit in targets[digits]]

    slots = np.empty((SLOTS, SLOTS, SLOT, SLOT, 3), np.uint8)
    slots[:] = random.integers(256, size=3)
    shown = np.full((SLOTS, SLOTS), IGNORED)
    free = np.ones((SLOTS, SLOTS), bool)
    free[tuple(zip(*reserved, strict=True))] = False
    chosen = random.permutation(np.flatnonzero(free))[:DISTRACTORS]
    slots.reshape(-1, SLOT, SLOT, 3)[chosen] = tiles
    shown.reshape(-1)[chosen] = words
    return slots.transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, 3), shown


def _draw(random: np.random.Generator, image: np.ndarray, jitter: bool) -> np.ndarray:
    """A digit in random ink on random paper, uint8 [16, 16, 3]."""
    paper = random.integers(120, 256, size=3)
    ink = paper * random.uniform(0.0, 0.4)
    strokes = _strokes(image)
    if jitter:
        strokes = np.roll(strokes, random.integers(-1, 2, size=2), axis=(0, 1))
    return (paper + (ink - paper) * strokes).astype(np.uint8)


def _strokes(images: np.ndarray) -> np.ndarray:
    """How much of the ink each pixel has, [..., 16, 16, 1] in [0, 1], of images [..., 8, 8]."""
    return images.repeat(2, axis=-2).repeat(2, axis=-1)[..., None]


def training_batch(random: np.random.Generator, size: int) -> Batch:
    """One of three with clutter, two of three with tiles; a quarter of the questions are about the photo."""
    kind = "clutter" if random.random() < 1 / 3 else "tiles"
    return make_batch(random, "train", size, kind, photo_questions=0.25, jitter=True)


TITLES = {
    "clutter": "six digits among photo clutter",
    "tiles": "six digits among 90 photo tiles, 40 of them scrawled on",
}
TASKS = [
    Task(kind, "digits", TITLES[kind], SLOTS, VOCABULARY, training_batch, partial(make_batch, kind=kind))
    for kind in KINDS
]
