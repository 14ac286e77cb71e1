"""Images and videos in batches that the encoder was measured for.

vLLM fills a batch for the encoder by tokens of the prompt, of which selection leaves few. At its start it measures the
memory of the encoder by all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vs_kernels.plan import SelectionPlan

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
EMBEDDINGS = {"image": "image_embeds", "video": "video_embeds"}
BY_ITEM = {
    "image": ("image_grid_thw", "image_kept"),
    "video": ("video_grid_thw", "video_kept", "second_per_grid_ts", "timestamps"),
}


def encoder_batches(fields: Mapping[str, Any], limit: int, merge: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split the fields of several items.

    Args:
        fields: as the model gets them: grids [items, 3], pixels packed by patches, embeddings by tokens.
        limit: visual tokens before selection that a batch has at most, unless one item alone has more.
        merge: the side of the square of patches that become one token.

    Yields:
        A modality and the fields of some of its items, in order.
    """
    for modality, names in BY_ITEM.items():
        grids = fields.get(f"{modality}_grid_thw")
        if grids is None:
            continue
        patches = grids.prod(-1).tolist()
        tokens = [count // merge**2 for count in patches]
        packed = {PIXELS[modality]: patches, EMBEDDINGS[modality]: tokens}
        for start, end in _groups(tokens, limit):
            batch = {name: fields[name][start:end] for name in names if fields.get(name) is not None}
            for name, counts in packed.items():
                if fields.get(name) is not None:
                    rows = SelectionPlan(counts, counts).cu_lengths().tolist()
                    batch[name] = fields[name][rows[start] : rows[end]]
            yield modality, batch


def _groups(sizes: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Start and end of runs whose sizes sum to the limit at most, or that are one entry."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield start, index
            start, total = index, 0
        total += size
    if sizes:
        yield start, len(sizes)
