"""Which Top-K kernel runs, by the length of the longest pool, and with how many threads."""

from torch import Tensor

from vs_kernels.kernels.launch import launch
from vs_kernels.kernels.soft_topk_split import soft_topk_split
from vs_kernels.kernels.tiles import architecture, next_power_of_two
from vs_kernels.kernels.topk import MOST_IN_REGISTERS, topk_kernel
from vs_kernels.kernels.topk_split import split_topk
from vs_kernels.kernels.topk_tiles import GROUP
from vs_kernels.kernels.total_loss import add_losses

# Of a program.
MOST_THREADS = 1024


def run_topk(
    scores: Tensor,  # float32 [T]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    max_length: int,
    *,
    ranking: Tensor | None = None,  # float32 [T], what the hard Top-K goes by; without probs and loss
    indices: Tensor | None = None,  # int64 [K], outputs, where wanted
    mask: Tensor | None = None,  # bool [T]
    probs: Tensor | None = None,  # float32 [T], with thresholds, pivots and shifts
    thresholds: Tensor | None = None,  # float32 [S]
    pivots: Tensor | None = None,  # float32 [S], with shifts
    shifts: Tensor | None = None,  # float32 [S]
    loss: Tensor | None = None,  # float32 [], mean over all rows, with grad_scores
    grad_scores: Tensor | None = None,  # float32 [T]
    temperature: float = 1.0,
) -> None:
    """The wanted results of the hard and the soft Top-K of all pools.

    One launch where the longest pool fits the registers of one program, and one more for the loss of several pools;
    else four, or seven where the hard Top-K goes by other scores than the soft one.
    """
    num_pools = cu_lengths.shape[0] - 1
    share = 1.0 / max(1, scores.shape[0])
    if max_length > MOST_IN_REGISTERS:
        if pivots is None or ranking is not None:
            split_topk(scores if ranking is None else ranking, cu_lengths, cu_ks, indices, mask)
            indices = mask = None
        if pivots is not None and shifts is not None:
            soft_topk_split(
                scores, cu_lengths, cu_ks, pivots=pivots, shifts=shifts, thresholds=thresholds, indices=indices,
                mask=mask, probs=probs, loss=loss, grad_scores=grad_scores, temperature=temperature, share=share,
            )  # fmt: skip
        return
    losses = loss if loss is None or num_pools == 1 else scores.new_empty(num_pools)
    outputs = (indices, mask, probs, thresholds, pivots, shifts, losses, grad_scores)
    arguments = (scores, ranking, cu_lengths, cu_ks, *outputs, temperature, 1.0 / temperature, share)
    lanes = 64 if architecture(scores.device).startswith("gfx") else 32
    # As many threads as can be, with at least GROUP scores each.
    held = next_power_of_two(max_length)
    tiles = max(GROUP.value, held // MOST_THREADS)
    warps = max(1, held // (tiles * lanes))
    launch(
        topk_kernel, (num_pools,), *arguments, TILES=tiles, WARPS=warps, LANES=lanes, num_warps=warps
    )  # fmt: skip
    if loss is not None and losses is not None and losses is not loss:
        add_losses(losses, loss)
