"""Rotary positions of a prompt from which visual tokens are missing.

vLLM fixes the length of a prompt and asks for its positions before the encoder runs; which tokens stay is known only
after it. What does not depend on the choice is final at once: positions of text, also behind an image, and the
position that follows the prompt. Columns of visual tokens hold the place where their image or video begins, as a
negative number, until the rows of the encoder bring their positions within it.

Those rows have the dtype of the embeddings, whose integers end at 256 in bfloat16. So every integer travels as digits
below 256, which float32, bfloat16 and float16 all hold exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 256
DIGITS = 3
CODED = 4  # time, height, width, and the row within its item
CHANNELS = CODED * DIGITS


class ItemLayout(NamedTuple):
    """One image or video in the full prompt, with all its visual tokens.

    Attributes:
        token_ids: L tokens; where a video has time stamps, they and the marks around its frames are among them.
        visual: bool [L], which of them are visual tokens.
        positions: int64 [3, L], rotary positions in time, height and width, from the beginning of the item.
    """

    token_ids: list[int]
    visual: Tensor
    positions: Tensor

    @property
    def extent(self) -> int:
        """How far the item moves the position of what follows it."""
        return int(self.positions.max()) + 1

    @property
    def text_ids(self) -> list[int]:
        """The tokens that are not visual, which always stay."""
        return [token for token, visual in zip(self.token_ids, self.visual.tolist(), strict=True) if not visual]

    def kept_columns(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the item that stay.

        Args:
            indices: int64 [k], the visual tokens that stay, ascending.

        Returns:
            int64 [k + text], ascending columns of the item; and int64 of the same size, which entry each column is
            of the k visual tokens with the text tokens behind them.
        """
        visual = self.visual.nonzero()[:, 0].to(indices.device)
        text = (~self.visual).nonzero()[:, 0].to(indices.device)
        return torch.cat([visual[indices], text]).sort()


def grid_positions(frames: int, rows: int, columns: int, time_factor: float = 1.0) -> Tensor:
    """int64 [3, frames * rows * columns], positions of a grid of visual tokens."""
    time, height, width = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    if time_factor != 1.0:
        time = (time.double() * time_factor).long()
    return torch.stack([time, height, width]).flatten(1)


def provisional_positions(length: int, items: Sequence[tuple[int, int, int]]) -> tuple[Tensor, int]:
    """Positions of a prompt before anything is selected.

    Args:
        length: tokens of the prompt, N.
        items: offset, tokens in the prompt and extent of every image and video, in any order.

    Returns:
        int64 [3, N]: positions of text; ``-1 - start`` in the columns of an item that begins at position ``start``.
        And the position that follows the prompt, less N.
    """
    positions = torch.empty(3, length, dtype=torch.int64)
    column = position = 0
    for offset, tokens, extent in sorted(items):
        text = offset - column
        positions[:, column:offset] = torch.arange(position, position + text)
        position += text
        column = offset + tokens
        positions[:, offset:column] = -1 - position
        position += extent
    positions[:, column:] = torch.arange(position, position + length - column)
    return positions, position + length - column - length


def encode(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[L, CHANNELS] in ``dtype``, of int64 values [CODED, L] in [0, 2^24)."""
    digits = [values // BASE**power % BASE for power in range(DIGITS)]
    return torch.cat(digits).T.to(dtype)


def decode(channels: Tensor) -> Tensor:
    """int64 [CODED, L], what :func:`encode` was given."""
    digits = channels.T.long().view(DIGITS, CODED, -1)
    powers = BASE ** torch.arange(DIGITS, device=channels.device)
    return (digits * powers[:, None, None]).sum(0)


def resolve(
    input_ids: Sequence[int] | Tensor,
    placeholders: Sequence[int],
    positions: Tensor,
    channels: Sequence[Tensor],
    computed: int,
) -> Tensor:
    """Final positions of the visual tokens of one chunk of a prompt.

    Args:
        input_ids: N tokens of the prompt. An item begins with its first placeholder.
        placeholders: the tokens that stand for visual tokens.
        positions: int64 [3, N], provisional or, after a chunk before or a request that was interrupted, final.
        channels: [rows, CHANNELS], of the items whose tokens are in the chunk, in order; the first may lack rows at
            its beginning, the last at its end.
        computed: tokens ahead of the chunk.

    Returns:
        int64 [3, N], final in the columns of the rows.
    """
    device = positions.device
    values = decode(torch.cat(list(channels))).to(device)
    tokens = torch.as_tensor(input_ids, device=device)
    starts = torch.isin(tokens, torch.tensor(placeholders, device=device)).nonzero()[:, 0]
    columns, cursor, row = [], computed, 0
    for item in channels:
        if values[-1, row] == 0:
            cursor = int(starts[torch.searchsorted(starts, cursor)])
        columns.append(torch.arange(cursor, cursor + len(item), device=device))
        cursor, row = cursor + len(item), row + len(item)
    chunk = torch.cat(columns)
    current = positions[:, chunk]
    resolved = positions.clone()
    resolved[:, chunk] = torch.where(current < 0, values[:3] - 1 - current, current)
    return resolved
