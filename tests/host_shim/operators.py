"""``python operators.py LIBRARY``: the CUDA operators on tensors of a CPU, with the library's own host code.

In a process of its own: the library registers kernels that nothing else shall meet.
"""

import ctypes
import sys
from pathlib import Path

sys.modules["triton"] = None  # type: ignore[assignment]  # its kernels would be there already
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from straight_through_cases import DTYPES, OPS, Case  # noqa: E402

from vs_kernels import SelectionPlan  # noqa: E402

CUDA = torch._C.DispatchKeySet("CUDA")


def on_cuda(case: Case, wanted: tuple[bool, bool]) -> tuple[torch.Tensor, torch.Tensor]:
    name = f"straight_through_{case.form}_backward"
    inputs = (case.grads, case.tokens, case.scores, case.kept, case.pivots, case.shifts)
    sums = case.plan.cu_lengths("cpu")
    return getattr(OPS, name).default.redispatch(CUDA, *inputs, sums, case.temperature, case.factor, list(wanted))


def one_entry_on(rows: torch.Tensor) -> torch.Tensor:
    """The same rows at an address that no vector of 16 bytes can be loaded from."""
    memory = rows.new_empty(rows.numel() + 1)
    return memory[1:].view(rows.shape).copy_(rows)


def main(library: str) -> None:
    torch.ops.load_library(library)
    launches_so_far = ctypes.CDLL(library).launches_so_far
    plan = SelectionPlan([40, 0, 1, 25], [9, 0, 1, 4])
    for form in ("gather", "mask"):
        for dtype in DTYPES.values():
            for width, padding in ((24, 0), (27, 5), (1032, 8)):
                case = Case.make(form, plan, width, dtype, noise=0.5, padding=padding)
                if form == "gather" and width == 24:
                    case.grads = torch.ones(1, 1, dtype=dtype).expand_as(case.grads)  # as of a sum
                for wanted in ((True, True), (True, False), (False, True), (False, False)):
                    before = launches_so_far()
                    results = on_cuda(case, wanted)
                    assert launches_so_far() - before == wanted[1] + any(wanted)
                    case.check(*(result if want else None for result, want in zip(results, wanted, strict=True)))
                    sizes = [result.numel() for result in results]
                    assert sizes == [
                        want * like.numel() for want, like in zip(wanted, (case.tokens, case.scores), strict=True)
                    ]
    for dtype in DTYPES.values():
        for moved in ("tokens", "grads"):
            case = Case.make("mask", plan, 24, dtype)
            setattr(case, moved, one_entry_on(getattr(case, moved)))
            case.check(*on_cuda(case, (True, True)))
    empty = Case.make("mask", SelectionPlan([0], [0]), 8, torch.float32)
    assert [result.shape for result in on_cuda(empty, (True, True))] == [(0, 8), (0,)]
    nothing_kept = Case.make("gather", SelectionPlan([9], [0]), 8, torch.float32)
    nothing_kept.check(*on_cuda(nothing_kept, (True, True)))
    print(f"{launches_so_far()} launches, no wrong result")


if __name__ == "__main__":
    main(sys.argv[1])
