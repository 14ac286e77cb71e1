"""SelectionPlan: which tokens compete with each other, and how many of them stay.

Everything that a kernel must know about sizes is fixed here, on the host. No operator ever waits for
the device to learn a length, so every operator can be captured in a CUDA graph.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

_CPU = torch.device("cpu")
ROUNDINGS: dict[str, Callable[[float], int]] = {"floor": math.floor, "round": round, "ceil": math.ceil}


class SelectionPlan:
    """Tokens per pool and tokens kept per pool.

    A pool is the set of tokens that compete for one budget: an image, a video, or all images of a call.
    Pools are packed without padding, the ``cu_seqlens`` way: pool ``s`` owns rows
    ``cu_lengths[s]:cu_lengths[s + 1]`` of the packed tokens, and entries ``cu_ks[s]:cu_ks[s + 1]`` of the
    kept ones.

    Args:
        lengths: tokens per pool, host integers >= 0.
        ks: tokens kept per pool, host integers with 0 <= k <= length.

    Attributes:
        lengths, ks: tuples of int.
        num_pools: number of pools, S.
        total_tokens: T, the sum of ``lengths``.
        total_kept: K, the sum of ``ks``.
        max_length: the longest pool (0 without pools).

    Raises:
        TypeError: a length or k that is not a host integer (a tensor would force a device wait).
        ValueError: a negative length, k outside [0, length], or sequences of different sizes.

    A plan is a constant: make a new one for new lengths.
    """

    def __init__(self, lengths: Sequence[int], ks: Sequence[int]):
        self.lengths = _host_ints(lengths, "lengths")
        self.ks = _host_ints(ks, "ks")
        if len(self.lengths) != len(self.ks):
            raise ValueError(
                f"ks: got {len(self.ks)} entries, expected {len(self.lengths)}, one for each of the lengths"
            )
        for pool, (length, k) in enumerate(zip(self.lengths, self.ks, strict=True)):
            if length < 0:
                raise ValueError(f"lengths[{pool}]: got {length}, expected an integer >= 0")
            if not 0 <= k <= length:
                raise ValueError(f"ks[{pool}]: got {k}, expected 0 <= k <= {length}, the length of the pool")
        self.num_pools = len(self.lengths)
        self.total_tokens = sum(self.lengths)
        self.total_kept = sum(self.ks)
        self.max_length = max((0, *self.lengths))
        self._on_device = {_CPU: (_exclusive_sums(self.lengths), _exclusive_sums(self.ks))}

    @classmethod
    def from_budget(
        cls,
        lengths: Sequence[int],
        budget: float | list[float] | tuple[float, ...],
        rounding: str = "floor",
        minimum: int = 1,
    ) -> "SelectionPlan":
        """Keep a share of every pool: ``k = max(minimum, rounding(length * budget))``, at most ``length``.

        Args:
            lengths: tokens per pool.
            budget: retention budget, the share of tokens kept, in (0, 1]; one number or one per pool.
            rounding: ``"floor"`` (as published), ``"round"`` or ``"ceil"``.
            minimum: tokens that every non-empty pool keeps at least (fewer only where it has fewer).
        """
        lengths = _host_ints(lengths, "lengths")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding: got {rounding!r}, expected one of {sorted(ROUNDINGS)}")
        if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 0:
            raise ValueError(f"minimum: got {minimum!r}, expected an integer >= 0")
        budgets = budget if isinstance(budget, (list, tuple)) else [budget] * len(lengths)
        if len(budgets) != len(lengths):
            raise ValueError(f"budget: got {len(budgets)} entries, expected {len(lengths)}, one for each pool")
        for share in budgets:
            check_budget(share)
        rounded = (ROUNDINGS[rounding](length * share) for length, share in zip(lengths, budgets, strict=True))
        return cls(lengths, [min(length, max(minimum, k)) for length, k in zip(lengths, rounded, strict=True)])

    @classmethod
    def dense(cls, batch: int, length: int, *, k: int | None = None, budget: float | None = None) -> "SelectionPlan":
        """``batch`` pools of ``length`` tokens each, keeping ``k`` tokens or a ``budget`` of every one."""
        if (k is None) == (budget is None):
            raise ValueError(f"k, budget: got k={k!r} and budget={budget!r}, expected exactly one of them")
        if k is not None:
            return cls([length] * batch, [k] * batch)
        assert budget is not None
        return cls.from_budget([length] * batch, budget)

    def cu_lengths(self, device: torch.device | str = "cpu") -> Tensor:
        """int64 [S + 1] on ``device``: first row of every pool, then T. Copied once per device."""
        return self.offsets(device)[0]

    def cu_ks(self, device: torch.device | str = "cpu") -> Tensor:
        """int64 [S + 1] on ``device``: first kept row of every pool, then K. Copied once per device."""
        return self.offsets(device)[1]

    def offsets(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """``cu_lengths`` and ``cu_ks`` on ``device``."""
        if not isinstance(device, torch.device):
            device = torch.device(device)
        if device not in self._on_device:
            cu_lengths, cu_ks = self._on_device[_CPU]
            self._on_device[device] = cu_lengths.to(device, non_blocking=True), cu_ks.to(device, non_blocking=True)
        return self._on_device[device]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SelectionPlan) and (self.lengths, self.ks) == (other.lengths, other.ks)

    def __hash__(self) -> int:
        return hash((self.lengths, self.ks))

    def __repr__(self) -> str:
        return f"SelectionPlan(lengths={list(self.lengths)}, ks={list(self.ks)})"


def check_budget(budget: float) -> None:
    """Raise unless ``budget`` is a number in (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget: got {type(budget).__name__}, expected a number in (0, 1]")
    if not 0.0 < budget <= 1.0:
        raise ValueError(f"budget: got {budget}, expected a number in (0, 1]")


def _host_ints(values: Sequence[int], name: str) -> tuple[int, ...]:
    if isinstance(values, Tensor):
        raise TypeError(f"{name}: got a tensor, expected host integers (.tolist() waits for the device)")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral, torch.SymInt)):
            raise TypeError(f"{name}: got an entry of type {type(value).__name__}, expected host integers")
    return tuple(value if isinstance(value, torch.SymInt) else int(value) for value in values)


def _exclusive_sums(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(accumulate(values, initial=0)), dtype=torch.int64, device=_CPU)
