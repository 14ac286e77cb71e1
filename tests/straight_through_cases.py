"""Inputs of the straight-through backward, its truth in float64, and how far from it a kernel may be."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vs_kernels import SelectionPlan, reference, verify

OPS = torch.ops.vs_kernels
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def bits(tensor: Tensor) -> np.ndarray:
    """A tensor as NumPy sees it; numbers of 16 bits as their bits."""
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).contiguous().numpy()


@dataclass
class Case:
    """One backward: ``form`` is "gather" or "mask", ``factor`` the scale of kept or of dropped rows."""

    form: str
    plan: SelectionPlan
    tokens: Tensor  # [T, D]
    scores: Tensor  # [T]
    grads: Tensor  # [K, D] or [T, D]
    temperature: float
    factor: float
    kept: Tensor  # indices [K] or mask [T]
    pivots: Tensor
    shifts: Tensor

    @classmethod
    def make(
        cls,
        form: str,
        plan: SelectionPlan,
        width: int,
        dtype: torch.dtype,
        *,
        temperature: float = 0.5,
        factor: float = 0.3,
        noise: float = 0.0,
        scores: Tensor | None = None,
        padding: int = 0,
        seed: int = 0,
    ) -> "Case":
        """Random rows; ``noise`` on the scores that rank, ``padding`` entries between the rows of all matrices."""
        generator = torch.Generator().manual_seed(seed)
        total = plan.total_tokens

        def rows(count: int) -> Tensor:
            memory = torch.full((count, width + padding), torch.nan, dtype=dtype)
            memory[:, :width] = torch.randn(count, width, generator=generator)
            return memory[:, :width]

        if scores is None:
            scores = torch.randn(total, generator=generator)
        ranking = scores + noise * torch.randn(total, generator=generator) if noise else None
        tokens = rows(total)
        sums = plan.cu_lengths("cpu"), plan.cu_ks("cpu")
        if form == "gather":
            outputs = OPS.straight_through_gather(
                tokens, scores, ranking, *sums, plan.total_kept, plan.max_length, temperature, factor
            )
        else:
            outputs = OPS.straight_through_mask(tokens, scores, ranking, *sums, plan.max_length, temperature, factor)
        _, kept, pivots, shifts = outputs
        grads = rows(plan.total_kept if form == "gather" else total)
        return cls(form, plan, tokens, scores, grads, temperature, factor, kept, pivots, shifts)

    def on_cpu(self, wanted: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor]:
        """The same by the library's kernel for a CPU."""
        backward = OPS.straight_through_gather_backward if self.form == "gather" else OPS.straight_through_mask_backward
        inputs = (self.grads, self.tokens, self.scores, self.kept, self.pivots, self.shifts)
        return backward(*inputs, self.plan.cu_lengths("cpu"), self.temperature, self.factor, list(wanted))

    def by_definition(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gradients of tokens and scores by autograd through the definition, in ``dtype``."""
        tokens, scores = (t.to(dtype, copy=True).requires_grad_() for t in (self.tokens, self.scores))
        # scores that rank as the forward did
        ranking = torch.zeros(self.plan.total_tokens)
        ranking[self.kept] = 1.0
        if self.form == "gather":
            out, indices = reference.straight_through_gather(
                tokens, scores, self.plan, self.temperature, scale=self.factor, selection_scores=ranking
            )
            assert torch.equal(indices, self.kept)
        else:
            out = reference.straight_through_mask(
                tokens, scores, self.plan, self.temperature, dropped_scale=self.factor, selection_scores=ranking
            )
        grads = torch.autograd.grad(out, [tokens, scores], self.grads.to(dtype))
        return grads[0], grads[1]

    def check(self, grad_tokens: Tensor | None, grad_scores: Tensor | None) -> None:
        """The rule of ``vs_kernels.verify``: twice the error of the definition in float32, and a rounding."""
        truths, singles = self.by_definition(torch.float64), self.by_definition(torch.float32)
        for name, actual, truth, single in zip(
            ("tokens", "scores"), (grad_tokens, grad_scores), truths, singles, strict=True
        ):
            if actual is not None:
                error, allowed = verify._error(actual, truth, single)
                assert error <= allowed, f"gradient of {name}: error {error:.1e}, allowed {allowed:.1e}"
