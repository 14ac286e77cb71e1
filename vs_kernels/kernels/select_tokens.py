"""select_tokens: score, Top-K and gather in six launches; nine where a pool is longer than 16,384 tokens."""

from torch import Tensor

from vs_kernels.kernels.gather_tokens import gather_rows
from vs_kernels.kernels.importance_scores import importance_scores
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
) -> tuple[Tensor, ...]:
    scores, *parts = importance_scores(tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths)
    indices = topk_indices(scores, cu_lengths, cu_ks, total_kept, max_length)
    return gather_rows(tokens, indices, 1.0), indices, scores, *parts
