"""Sizes of the pools, read back where a kernel in plain PyTorch runs."""

from torch import Tensor

from vs_kernels.plan import SelectionPlan


def plan_of(cu_lengths: Tensor, cu_ks: Tensor | None = None) -> SelectionPlan:
    """The plan behind the offsets that an operator got; waits for the device when they are not on the CPU."""
    lengths = cu_lengths.diff().tolist()
    return SelectionPlan(lengths, lengths if cu_ks is None else cu_ks.diff().tolist())
