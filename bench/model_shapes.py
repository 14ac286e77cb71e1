"""How many visual tokens of which width real models make of images and videos."""

from collections.abc import Callable
from typing import NamedTuple

FRAME = 448  # pixels a side of a video's frames


class Model(NamedTuple):
    """``width`` D of the visual tokens; tokens of an image of (columns, rows) pixels; of a video of so many frames."""

    width: int
    image: Callable[[int, int], int]
    video: Callable[[int], int]


def _cells(pixels: int) -> Callable[[int, int], int]:
    """One token for every ``pixels`` x ``pixels``."""
    return lambda columns, rows: max(1, round(columns / pixels)) * max(1, round(rows / pixels))


def _qwen(width: int, pixels: int) -> Model:
    cells = _cells(pixels)
    # A token of a video is two frames deep.
    return Model(width, cells, lambda frames: frames // 2 * cells(FRAME, FRAME))


def _one_vision(columns: int, rows: int) -> int:
    """27 x 27 tokens of the whole image, and as many of every tile of 384 pixels, of nine at most in the end."""
    tiles = min(9, -(-columns // 384) * -(-rows // 384))
    return 729 * (1 + tiles)


MODELS = {
    "Qwen2.5-VL-3B": _qwen(2048, 28),
    "Qwen2.5-VL-7B": _qwen(3584, 28),
    "Qwen2.5-VL-32B": _qwen(5120, 28),
    "Qwen3-VL-8B": _qwen(4096, 32),
    "LLaVA-OneVision-7B": Model(3584, _one_vision, lambda frames: 196 * frames),
}
IMAGES = {"224": (224, 224), "448": (448, 448), "1080p": (1920, 1080), "4K": (3840, 2160)}
FRAMES = (8, 64, 256)


def tokens(model: str, item: str) -> int:
    """Visual tokens of one of ``ITEMS``."""
    if item in IMAGES:
        return MODELS[model].image(*IMAGES[item])
    return MODELS[model].video(int(item.removesuffix(" frames")))


ITEMS = (*IMAGES, *(f"{frames} frames" for frames in FRAMES))
