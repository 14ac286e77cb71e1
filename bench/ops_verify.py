"""Whether a provider's result is right: the library's rule of tolerances, for any provider."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vs_kernels.verify import FLOORS

Results = Sequence[Tensor]
Verify = Callable[[Results], None]


class WrongResult(Exception):
    """A call did not give what it must, so its time is worth nothing."""


def near(truth: Results, single: Results) -> Verify:
    """Results must match ``truth``, the definition in float64.

    The error may be at most twice that of ``single``, the definition in float32, plus a floor for the rounding of
    the result itself. Indices and masks must match exactly.
    """

    @torch.no_grad()
    def verify(results: Results) -> None:
        for number, (result, true, rough) in enumerate(zip(results, truth, single, strict=True)):
            if result.shape != true.shape:
                raise WrongResult(f"result {number} has shape {tuple(result.shape)}, expected {tuple(true.shape)}")
            if not result.dtype.is_floating_point:
                if not torch.equal(result, true):
                    raise WrongResult(f"result {number} differs in {int((result != true).sum())} entries")
                continue
            size = float(true.abs().max())
            error = float((result.double() - true).abs().max())
            allowed = 2 * float((rough.double() - true).abs().max()) + FLOORS[result.dtype] * size
            # Written so that a NaN fails as well.
            if not error <= allowed:
                raise WrongResult(f"result {number} is off by {error:.1e}, allowed are {allowed:.1e}")

    return verify
