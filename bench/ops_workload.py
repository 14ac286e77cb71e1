"""What the operators are timed on: sizes, inputs, and the true results to verify against."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from bench.ops_timing import Stream
from vs_kernels import SelectionPlan, reference
from vs_kernels.verify import Inputs

BUDGET = 0.2


class Sizes(NamedTuple):
    """Widths of the tokens and of the scorer, and numbers of tokens; the defaults are those of Qwen2.5-VL-7B."""

    width: int = 3584
    hidden: int = 1792
    short: int = 1024
    middle: int = 4096
    long: int = 16384
    longest: int = 65536
    small: int = 256
    small_width: int = 2048
    stream_bytes: int = 2**30
    matrix: int = 2048


class Workload:
    """Inputs by number of tokens and dtype. The last few stay in memory, because neighbouring rows share them."""

    def __init__(self, sizes: Sizes, device: torch.device, stream: Stream, seed: int):
        self.sizes, self.device, self.stream = sizes, device, stream
        self._seed = seed
        self.inputs = functools.lru_cache(maxsize=2)(self._inputs)
        self.true_scores = functools.lru_cache(maxsize=None)(self._true_scores)

    def _inputs(self, length: int, dtype: torch.dtype) -> Inputs:
        """One pool of ``length`` tokens; scores and weights of order one."""
        plan = SelectionPlan.from_budget([length], BUDGET)
        return Inputs.random(plan, self.sizes.width, self.sizes.hidden, dtype, str(self.device), self._seed)

    def _true_scores(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Importance scores in float64 and in float32, by the formula that is exact without the N x N matrix."""
        x = self.inputs(length, dtype)
        double, single = (
            reference.importance_scores_collapsed(
                x.tokens.to(wider), *(weight.to(wider) for weight in x.weights), x.plan
            )[0]
            for wider in (torch.float64, torch.float32)
        )
        return double, single

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A random gradient to start a backward with."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        return torch.randn(*shape, generator=generator).to(self.device, dtype)
