"""topk_consistency_loss: hard Top-K, soft Top-K, loss and gradient in one launch; one more adds up several pools."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.choose import run_topk
from vs_kernels.kernels.launch import launch

BLOCK = 1024


@triton.jit(do_not_specialize=["num_pools"])
def _total_kernel(losses, loss, num_pools, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_pools, BLOCK):
        pools = start + tl.arange(0, BLOCK)
        total += tl.load(losses + pools, mask=pools < num_pools, other=0.0).to(tl.float64)
    tl.store(loss, tl.sum(total, axis=0).to(tl.float32))


def topk_consistency_loss(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    num_pools = cu_lengths.shape[0] - 1
    grad_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    losses, pivots, shifts = (scores.new_empty(num_pools) for _ in range(3))
    run_topk(
        scores.contiguous(), cu_lengths, cu_ks, max_length, pivots=pivots, shifts=shifts, losses=losses,
        grad_scores=grad_scores, temperature=temperature, share=1.0 / max(1, scores.shape[0]),
    )  # fmt: skip
    return total_loss(losses), grad_scores


def total_loss(losses: Tensor) -> Tensor:
    """Sum of the losses of the pools, [S] -> []; no launch for one pool."""
    if losses.shape[0] == 1:
        return losses[0]
    loss = losses.new_empty(())
    launch(_total_kernel, (1,), losses, loss, losses.shape[0], BLOCK=BLOCK, num_warps=4)
    return loss
