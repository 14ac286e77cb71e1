"""gather_tokens_with: rows, positions and mask of the kept tokens in one launch."""

import torch
from torch import Tensor

from vs_kernels.kernels.gather_tokens import gather_rows


def gather_tokens_with(
    tokens: Tensor,  # [T, D]
    indices: Tensor,  # int64 [K]
    position_ids: Tensor | None,  # int64 [T] or [R, T]
    mask: Tensor | None,  # bool [T]
) -> tuple[Tensor, Tensor, Tensor]:
    count = indices.shape[0]
    positions = None if position_ids is None else position_ids.new_empty(*position_ids.shape[:-1], count)
    kept_mask = None if mask is None else mask.new_empty(count)
    position_ids = None if position_ids is None else position_ids.contiguous()
    mask = None if mask is None else mask.contiguous()
    kept = gather_rows(tokens, indices.contiguous(), 1.0, (position_ids, positions), (mask, kept_mask))
    return (
        kept,
        indices.new_empty(0) if positions is None else positions,
        indices.new_empty(0, dtype=torch.bool) if kept_mask is None else kept_mask,
    )
