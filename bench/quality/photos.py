"""Photos that pip packages carry, cut into backgrounds and tiles; training and validation photos are disjoint."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = {
    "train": (
        "coffee.png", "astronaut.png", "motorcycle_left.png", "retina.jpg", "ihc.png", "gravel.png", "grass.png",
        "china.jpg",
    ),
    "validation": ("chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "brick.png", "coins.png", "flower.jpg"),
}  # fmt: skip
SCALES = (0.35, 0.6, 1.0)


@cache
def photos(split: str, smallest: int) -> list[list[np.ndarray]]:
    """Every photo of a split in up to three sizes, uint8 [H, W, 3], each at least ``smallest`` pixels a side."""
    import skimage.data
    import sklearn.datasets

    folders = [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]
    sizes = []
    for name in PHOTOS[split]:
        path = next(folder / name for folder in folders if (folder / name).is_file())
        photo = Image.open(path).convert("RGB")
        shapes = [(round(photo.width * scale), round(photo.height * scale)) for scale in SCALES]
        resized = [photo.resize(shape, Image.Resampling.BILINEAR) for shape in shapes if min(shape) >= smallest]
        sizes.append([np.asarray(image) for image in resized])
    return sizes


def crop(random: np.random.Generator, sizes: list[np.ndarray], size: int) -> np.ndarray:
    """A square of ``size`` pixels from a random place of a photo, in a random one of its sizes, sometimes mirrored."""
    photo = sizes[random.integers(len(sizes))]
    top, left = (random.integers(extent - size + 1) for extent in photo.shape[:2])
    square = photo[top : top + size, left : left + size]
    return square[:, ::-1] if random.random() < 0.5 else square


@cache
def textured_tiles(split: str, smallest: int, size: int, number: int) -> np.ndarray:
    """Tiles of every photo of a split, uint8 [photos, number, size, size, 3]: each the crop with the strongest contrast
    of four, so that it is no empty patch of sky."""
    random = np.random.default_rng(0)
    photo_tiles = []
    for sizes in photos(split, smallest):
        tries = [[crop(random, sizes, size) for _ in range(4)] for _ in range(number)]
        photo_tiles.append([max(crops, key=lambda tile: tile.std()) for crops in tries])
    return np.array(photo_tiles)
