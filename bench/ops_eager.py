"""The library's formulas composed of PyTorch operators, as one would write them without it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import published


def collapsed_scores(
    tokens: Tensor,  # [N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
) -> Tensor:  # float32 [N]
    """Importance scores without the N x N matrix, by matrix products: the faster form in eager PyTorch.

    In float32 whatever comes, as the library: in bfloat16 the sums would be too coarse to rank by.
    """
    x = tokens.float()
    key = F.linear(x.mean(dim=0), k_weight.float(), k_bias.float())
    direction = key @ q_weight.float()
    return (x @ direction + q_bias.float() @ key) / math.sqrt(q_weight.shape[0])


def collapsed_scores_by_sums(
    tokens: Tensor,  # [N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
) -> Tensor:  # float32 [N]
    """The same by products and sums, which a compiler fuses with the conversions: the faster form under one."""
    x = tokens.float()
    key = (k_weight.float() * x.mean(dim=0)).sum(dim=1) + k_bias.float()
    direction = (q_weight.float() * key[:, None]).sum(dim=0)
    return ((x * direction).sum(dim=1) + (q_bias.float() * key).sum()) / math.sqrt(q_weight.shape[0])


def soft_topk(scores: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """The published bisection, without its boolean masks: the host waits for nothing."""
    return published.SoftTopK.apply(scores, k, temperature, bisect)


def bisect(logits: Tensor, k: int) -> Tensor:
    """The shift, [1]."""
    low, high = published.bracket(logits)
    for _ in range(published.BISECTIONS):
        middle = 0.5 * (low + high)
        too_few = torch.sigmoid(logits + middle).sum() < k
        low = torch.where(too_few, middle, low)
        high = torch.where(too_few, high, middle)
    return 0.5 * (low + high)


def straight_through_gather(tokens: Tensor, scores: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """Kept rows [k, D] in the forward, the gradient of ``p_i x_i`` for the scores in the backward."""
    indices = published.topk_indices(scores, k)
    probs = soft_topk(scores, k, temperature)
    kept = tokens[indices]
    return kept + (probs - probs.detach())[indices, None] * kept.detach()


def select_tokens(
    tokens: Tensor,  # [N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept rows [k, D], their indices [k] and the scores [N], without the N x N matrix."""
    scores = collapsed_scores(tokens, q_weight, q_bias, k_weight, k_bias)
    indices = published.topk_indices(scores, k)
    return tokens[indices], indices, scores
