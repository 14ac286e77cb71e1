"""Batches for the encoder hold no more visual tokens than it was measured with, and everything in order."""

import pytest
import torch

from vs_kernels.integrations.vllm.encoder_batches import encoder_batches

GRIDS = torch.tensor([[1, 4, 4], [1, 8, 4], [1, 20, 20], [1, 2, 2], [1, 4, 6]])
PATCHES = GRIDS.prod(-1)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, [1] * 5), (12, [2, 1, 2]), (10**6, [5]), (4, [1, 1, 1, 1, 1]), (7, [1, 1, 1, 2])]
)
def test_images(limit: int, sizes: list[int]) -> None:
    fields = {
        "pixel_values": torch.arange(int(PATCHES.sum()))[:, None],
        "image_grid_thw": GRIDS,
        "image_kept": torch.arange(5)[:, None],
    }
    batches = list(encoder_batches(fields, limit, merge=2))
    assert [modality for modality, _ in batches] == ["image"] * len(sizes)
    assert [len(batch["image_grid_thw"]) for _, batch in batches] == sizes
    for _, batch in batches:
        assert len(batch["pixel_values"]) == int(batch["image_grid_thw"].prod(-1).sum())
    for name, value in fields.items():
        assert torch.equal(torch.cat([batch[name] for _, batch in batches]), value)


def test_videos_with_what_belongs_to_them() -> None:
    fields = {
        "video_embeds": torch.arange(int(PATCHES.sum()) // 4)[:, None],
        "video_grid_thw": GRIDS,
        "video_kept": torch.arange(5)[:, None],
        "second_per_grid_ts": torch.arange(5.0),
        "timestamps": [[0.5], [1.5], [2.5], [3.5], [4.5]],
    }
    batches = [batch for _, batch in encoder_batches(fields, 12, merge=2)]
    assert [batch["timestamps"] for batch in batches] == [[[0.5], [1.5]], [[2.5]], [[3.5], [4.5]]]
    assert [batch["second_per_grid_ts"].tolist() for batch in batches] == [[0, 1], [2], [3, 4]]
    assert torch.equal(torch.cat([batch["video_embeds"] for batch in batches]), fields["video_embeds"])
