"""Positions around and in visual tokens, in chunks, in every dtype, without a model."""

import pytest
import torch
from torch import Tensor

from vs_kernels.integrations.vllm.positions import (
    ItemLayout,
    decode,
    encode,
    grid_positions,
    provisional_positions,
    resolve,
)

PAD, TEXT = 9, 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_carries_every_integer(dtype: torch.dtype) -> None:
    values = torch.stack([torch.arange(70_000), torch.arange(70_000) + 2**20, *torch.randint(2**24, (2, 70_000))])
    assert torch.equal(decode(encode(values, dtype)), values)


def image(rows: int, columns: int) -> ItemLayout:
    positions = grid_positions(1, rows, columns)
    return ItemLayout([PAD] * rows * columns, torch.ones(rows * columns, dtype=torch.bool), positions)


def video(frames: int, rows: int, columns: int) -> ItemLayout:
    """Two text tokens ahead of every frame, one behind it."""
    ids, positions, start = [], [], 0
    for _ in range(frames):
        grid = grid_positions(1, rows, columns)
        ids += [TEXT, TEXT, *[PAD] * (rows * columns), TEXT]
        positions += [torch.arange(2).expand(3, -1) + start, grid + start + 2]
        start += 2 + max(rows, columns)
        positions.append(torch.full((3, 1), start))
        start += 1
    return ItemLayout(ids, torch.tensor(ids) == PAD, torch.cat(positions, 1))


def full_and_kept(parts: list[int | ItemLayout], share: float, dtype: torch.dtype) -> tuple[list[int], Tensor, list]:
    """A prompt of text and items: its tokens, the positions that its columns have in the full prompt, and by item its
    offset, tokens, extent and rows."""
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = []
    positions: list[Tensor] = []
    items = []
    start = 0
    for part in parts:
        if isinstance(part, int):
            ids += [TEXT] * part
            positions.append(torch.arange(start, start + part).expand(3, -1))
            start += part
            continue
        total = int(part.visual.sum())
        k = max(1, int(total * share))
        indices = torch.randperm(total, generator=generator)[:k].sort().values
        columns, _ = part.kept_columns(indices)
        rows = encode(torch.cat([part.positions[:, columns], torch.arange(len(columns))[None]]), dtype)
        items.append((len(ids), len(columns), part.extent, rows))
        ids += [PAD] * k + part.text_ids
        positions.append(part.positions[:, columns] + start)
        start += part.extent
    return ids, torch.cat(positions, 1), items


PROMPTS = {
    "one image": [5, image(4, 6), 3],
    "at the beginning": [image(4, 6), 3],
    "side by side": [2, image(4, 6), image(6, 4), image(3, 3), 3],
    "far away": [300, image(30, 20), 400, image(20, 30), 2],
    "videos": [3, video(3, 4, 2), 1, image(2, 5), 2, video(2, 3, 3), 4],
}


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_positions_of_the_full_prompt_in_chunks(parts: list[int | ItemLayout], share: float, chunk: int) -> None:
    ids, expected, items = full_and_kept(parts, share, torch.bfloat16)
    positions, delta = provisional_positions(len(ids), [item[:3] for item in items])
    assert delta == int(expected.max()) + 1 - len(ids)
    text = (positions >= 0).all(0)
    assert torch.equal(positions[:, text], expected[:, text])
    # Twice, as for a request that was interrupted and begins again.
    for _ in range(2):
        for computed in range(0, len(ids), chunk):
            rows = [
                part
                for offset, tokens, _, channels in items
                if len(part := channels[max(computed - offset, 0) : max(computed + chunk - offset, 0)][:tokens])
            ]
            if rows:
                positions = resolve(ids, [PAD], positions, rows, computed)
    assert torch.equal(positions, expected)


def test_a_chunk_behind_cached_tokens_begins_in_the_middle_of_an_image() -> None:
    ids, expected, ((offset, tokens, extent, rows),) = full_and_kept([5, image(8, 8), 3], 0.5, torch.bfloat16)
    positions, _ = provisional_positions(len(ids), [(offset, tokens, extent)])
    resolved = resolve(torch.tensor(ids), [PAD], positions, [rows[10:]], offset + 10)
    assert torch.equal(resolved[:, offset + 10 :], expected[:, offset + 10 :])
