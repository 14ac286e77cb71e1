"""topk_mask: one launch for pools up to 16,384 tokens, four for longer ones."""

import torch
from torch import Tensor

from vs_kernels.kernels.choose import run_topk


def topk_mask(scores: Tensor, cu_lengths: Tensor, cu_ks: Tensor, max_length: int) -> Tensor:
    mask = scores.new_empty(scores.shape, dtype=torch.bool)
    run_topk(scores.contiguous(), cu_lengths, cu_ks, max_length, mask=mask)
    return mask
