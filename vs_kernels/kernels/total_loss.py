"""The losses of several pools, added up."""

import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels.launch import launch

BLOCK = 1024


@triton.jit(do_not_specialize=["num_pools"])
def _total_kernel(losses, loss, num_pools, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_pools, BLOCK):
        pools = start + tl.arange(0, BLOCK)
        total += tl.load(losses + pools, mask=pools < num_pools, other=0.0).to(tl.float64)
    tl.store(loss, tl.sum(total, axis=0).to(tl.float32))


def add_losses(losses: Tensor, loss: Tensor) -> None:
    """Write the sum of the losses of the pools, [S] -> []."""
    launch(_total_kernel, (1,), losses, loss, losses.shape[0], BLOCK=BLOCK, num_warps=4)
