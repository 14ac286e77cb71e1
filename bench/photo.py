"""The photo of a run."""

from pathlib import Path

from PIL import Image, ImageOps

PATCH = 28  # pixels a side behind one visual token of Qwen2-VL: 2 x 2 patches of 14 x 14


def read_photo(path: Path | None) -> Image.Image:
    """The image in ``path`` upright and in RGB; without a path, the astronaut that scikit-image carries.

    Raises:
        ValueError: no such file, or not a whole image.
    """
    if path is None:
        import skimage.data

        return Image.fromarray(skimage.data.astronaut())
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {path} ({error})") from error
