"""What both straight-through backwards do: credits and token gradients in one launch, the soft Jacobian in another."""

from collections.abc import Callable

from torch import Tensor

from vs_kernels.kernels.soft_topk import soft_jacobian


def straight_through_backward(
    write_rows: Callable[[Tensor | None, Tensor | None, Tensor | None], None],
    tokens: Tensor,  # [T, D]
    scores: Tensor,  # float32 [T]
    pivots: Tensor,  # float32 [S]
    shifts: Tensor,  # float32 [S]
    cu_lengths: Tensor,  # int64 [S + 1]
    temperature: float,
    output_mask: list[bool],  # tokens, scores
) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens and of the scores, empty where not wanted.

    ``write_rows(tokens, grad_tokens, credit)`` launches the kernel that writes the last two; None: not wanted, and
    tokens only with credit.
    """
    wants_tokens, wants_scores = output_mask
    grad_tokens = tokens.new_empty(tokens.shape if wants_tokens else 0)
    credit = scores.new_empty(scores.shape if wants_scores else 0)
    if wants_tokens or wants_scores:
        given, credits = (tokens, credit) if wants_scores else (None, None)
        write_rows(given, grad_tokens if wants_tokens else None, credits)
    if wants_scores:
        return grad_tokens, soft_jacobian(credit, scores, pivots, shifts, cu_lengths, temperature)
    return grad_tokens, credit
