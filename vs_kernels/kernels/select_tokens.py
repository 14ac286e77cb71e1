"""select_tokens: score, Top-K and gather in six launches, however long the pools are."""

from torch import Tensor

from vs_kernels.kernels import select_digits
from vs_kernels.kernels.gather_tokens import gather_rows
from vs_kernels.kernels.importance_scores import score_tokens
from vs_kernels.kernels.select_long import select_long
from vs_kernels.kernels.topk_indices import topk_indices


def select_tokens(
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    cu_lengths: Tensor,  # int64 [S + 1]
    cu_ks: Tensor,  # int64 [S + 1]
    total_kept: int,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    counted = max_length > select_digits.LONG
    scores, _, _, _, counts = score_tokens(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, counted)
    if counts is not None:
        kept, indices = select_long(tokens, scores, counts, cu_lengths, cu_ks, total_kept)
    else:
        indices = topk_indices(scores, cu_lengths, cu_ks, total_kept, max_length)
        kept = gather_rows(tokens, indices, 1.0)
    return kept, indices, scores
