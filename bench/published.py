"""The published algorithm, written afresh from its formulas (VisionSelector, arXiv 2510.16598), in eager PyTorch.

One pool of tokens, as published. As there, every step of the bisection reads and writes through boolean masks, for
which the host waits four times on a GPU.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BISECTIONS = 64
MARGIN = 10.0  # logits beyond the scores' range between which the threshold is searched


def importance_scores(
    tokens: Tensor,  # [N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
) -> Tensor:  # [N]
    """``s_i = mean_j (q_i . k_j) / sqrt(h)``, by way of the N x N matrix."""
    queries = F.linear(tokens, q_weight, q_bias)
    keys = F.linear(tokens, k_weight, k_bias)
    return (queries @ keys.T).mean(dim=1) / math.sqrt(q_weight.shape[0])


def topk_indices(scores: Tensor, k: int) -> Tensor:
    """int64 [k], ascending."""
    return scores.topk(k).indices.sort().values


def topk_mask(scores: Tensor, k: int) -> Tensor:
    """[N] in the dtype of the scores: 1 for the k largest, 0 for the others."""
    return torch.zeros_like(scores).scatter(0, scores.topk(k).indices, 1.0)


def soft_topk(scores: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """[N]: ``p_i = sigmoid(s_i / temperature + t)`` with ``t`` found by bisection so that they sum to k."""
    return SoftTopK.apply(scores, k, temperature, bisect)


def bracket(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[1] each: shifts that make all probabilities small, and large."""
    return -logits.amax(dim=0, keepdim=True) - MARGIN, -logits.amin(dim=0, keepdim=True) + MARGIN


def bisect(logits: Tensor, k: int) -> Tensor:
    """The shift, [1]."""
    low, high = bracket(logits)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_few = torch.sigmoid(logits + middle).sum(dim=0, keepdim=True) < k
        low[too_few] = middle[too_few]
        high[~too_few] = middle[~too_few]
    return (low + high) / 2


class SoftTopK(torch.autograd.Function):
    """(scores [N], k, temperature, search: (logits [N], k) -> shift) -> probabilities [N], with the gradient of the
    exact solution."""

    @staticmethod
    def forward(ctx, scores, k, temperature, search: Callable[[Tensor, int], Tensor]):
        logits = scores / temperature
        probs = torch.sigmoid(logits + search(logits, k))
        ctx.save_for_backward(probs)
        ctx.temperature = temperature
        return probs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_probs):
        (probs,) = ctx.saved_tensors
        slopes = probs * (1 - probs)
        mean = (slopes * grad_probs).sum() / slopes.sum()
        return slopes * (grad_probs - mean) / ctx.temperature, None, None, None


def topk_consistency_loss(probs: Tensor, scores: Tensor, k: int) -> Tensor:
    """Scalar: binary cross-entropy of the soft Top-K towards the hard one, mean over the tokens."""
    return F.binary_cross_entropy(probs, topk_mask(scores, k))


def select_tokens(
    tokens: Tensor,  # [N, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inference: kept rows [k, D], their indices [k], scores [N], and the probabilities [N] that nothing reads."""
    scores = importance_scores(tokens, q_weight, q_bias, k_weight, k_bias)
    indices = topk_indices(scores, k)
    probs = soft_topk(scores, k)
    return tokens[indices], indices, scores, probs
