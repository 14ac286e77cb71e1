"""Which Top-K kernel runs, by the length of the longest pool, and with how many threads."""

import torch
import triton
from torch import Tensor

from vs_kernels.kernels.launch import launch
from vs_kernels.kernels.tiles import next_power_of_two
from vs_kernels.kernels.topk import MOST_IN_REGISTERS, topk_kernel
from vs_kernels.kernels.topk_large import topk_large_kernel
from vs_kernels.kernels.topk_split import split_topk

# Few scores a thread make short rounds. Beyond 512 threads a thread has 64 registers, and what the longest pools need
# beside their scores spills; with 512 it has 128.
SCORES_PER_THREAD = 4
MOST_WARPS = 16
REGISTERS = 128
# Scores that a program works on at a time where it reads them again.
READ_BLOCK = 2048


def run_topk(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    *,
    ranking: Tensor | None = None,  # float32 [T], what the hard Top-K goes by instead of the scores
    indices: Tensor | None = None,  # int64 [K], outputs, where wanted
    mask: Tensor | None = None,  # bool [T]
    probs: Tensor | None = None,  # float32 [T], with thresholds, pivots and shifts
    thresholds: Tensor | None = None,  # float32 [S]
    pivots: Tensor | None = None,  # float32 [S], with shifts
    shifts: Tensor | None = None,  # float32 [S]
    losses: Tensor | None = None,  # float32 [S], with grad_scores
    grad_scores: Tensor | None = None,  # float32 [T]
    temperature: float = 1.0,
    share: float = 1.0,
) -> None:
    """The wanted results of the hard and the soft Top-K of all pools: in one launch, where the longest pool fits the
    registers of one program or the soft Top-K is wanted, else in four."""
    if max_length > MOST_IN_REGISTERS and pivots is None:
        split_topk(scores if ranking is None else ranking, cu_lengths, cu_ks, indices, mask)
        return
    outputs = (indices, mask, probs, thresholds, pivots, shifts, losses, grad_scores)
    arguments = (scores, ranking, cu_lengths, cu_ks, *outputs, temperature, 1.0 / temperature, share)
    grid = (cu_lengths.shape[0] - 1,)
    options = {} if scores.device.type == "cpu" or torch.version.hip else {"maxnreg": REGISTERS}
    # With the loss to follow, the root of 16,384 scores would spill a few registers.
    if max_length > (MOST_IN_REGISTERS if losses is None else MOST_IN_REGISTERS // 2):
        launch(topk_large_kernel, grid, *arguments, BLOCK=READ_BLOCK, num_warps=MOST_WARPS, **options)
        return
    block = max(32, next_power_of_two(max_length))
    warps = min(MOST_WARPS, max(1, triton.cdiv(block, 32 * SCORES_PER_THREAD)))
    launch(topk_kernel, grid, *arguments, BLOCK=block, WRITE_BLOCK=min(block, READ_BLOCK), num_warps=warps, **options)
