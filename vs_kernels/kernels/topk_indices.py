"""topk_indices: one launch for pools up to 16,384 tokens, four for longer ones."""

import torch
from torch import Tensor

from vs_kernels.kernels.choose import run_topk


def topk_indices(scores: Tensor, cu_lengths: Tensor, cu_ks: Tensor, total_kept: int, max_length: int) -> Tensor:
    indices = scores.new_empty(total_kept, dtype=torch.int64)
    run_topk(scores.contiguous(), cu_lengths, cu_ks, max_length, indices=indices)
    return indices
