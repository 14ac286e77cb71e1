"""A selection as one CUDA graph, for lengths that come again and again."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vs_kernels.ops.select_tokens import select_tokens
from vs_kernels.selection import Selection

if TYPE_CHECKING:
    from vs_kernels.selector import VisionTokenSelector

WARM_UPS = 2  # compile the kernels and fill the caches of the allocator


class CapturedSelection:
    """Selects among tokens of fixed lengths; :meth:`VisionTokenSelector.capture` makes it.

    Called with tokens [T, D] it copies them to where the graph reads, replays it and returns the selection, whose
    tensors the next call overwrites. Weights of the scorer are read where they are, so that updates in place take
    effect. Tokens of another shape, dtype or device are selected without the graph, with a warning.

    Attributes:
        plan: pools and how many tokens each keeps.
    """

    def __init__(
        self, selector: "VisionTokenSelector", lengths: Sequence[int], budget: float | None, dtype: torch.dtype
    ):
        device = selector.scorer.q_proj.weight.device
        if device.type != "cuda":
            raise ValueError(f"selector: got one on {device}, expected a CUDA device, which alone has graphs")
        if selector.training:
            raise ValueError("selector: got one that is training, expected .eval(); a graph has no gradient")
        self.plan = selector.plan(lengths, budget)
        self._selector, self._lengths, self._budget = selector, list(lengths), budget
        self._tokens = torch.zeros(self.plan.total_tokens, selector.scorer.in_features, dtype=dtype, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._select()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._selection = self._select()

    @torch.no_grad()
    def _select(self) -> Selection:
        return select_tokens(self._tokens, *self._selector.scorer.weights(), self.plan)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Selection:
        held = self._tokens
        if (tokens.shape, tokens.dtype, tokens.device) != (held.shape, held.dtype, held.device):
            warnings.warn(
                f"captured for tokens {list(held.shape)} of {held.dtype} on {held.device}, got {list(tokens.shape)} of "
                f"{tokens.dtype} on {tokens.device}: selecting without the graph",
                RuntimeWarning,
                stacklevel=2,
            )
            lengths = self._lengths if tokens.shape[0] == held.shape[0] else None
            return self._selector(tokens, lengths, self._budget)
        held.copy_(tokens)
        self._graph.replay()
        return self._selection
