"""The definition of every operator in plain PyTorch: the truth of the tests, in any floating dtype.

Every function has the arguments of the public operator of the same name, with packed tokens and scores,
and is differentiable by ordinary autograd. Results are at least float32; float64 in, float64 out.
Formulas are those of VisionSelector (arXiv 2510.16598) unless a docstring names another source.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vs_kernels.plan import SelectionPlan

CHUNK_ROWS = 1024  # rows converted to the accumulation dtype at a time: bounds the extra memory
SATURATION = 104.0  # sigmoid(-104) is zero in float32: no shift beyond it changes a probability
MAX_STEPS = 100


def pools(plan: SelectionPlan) -> Iterator[tuple[slice, int]]:
    """(rows, k) of every pool, empty ones included."""
    start = 0
    for length, k in zip(plan.lengths, plan.ks, strict=True):
        yield slice(start, start + length), k
        start += length


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def importance_scores(
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    plan: SelectionPlan,
) -> Tensor:  # [T]
    """The scores as published, ``s_i = mean_j (q_i . k_j) / sqrt(h)``, with the N x N product of each pool."""
    dtype = accumulation_dtype(tokens)
    scores = [tokens.new_zeros(0, dtype=dtype)]
    for rows, _ in pools(plan):
        x = tokens[rows].to(dtype)
        queries = x @ q_weight.to(dtype).T + q_bias.to(dtype)
        keys = x @ k_weight.to(dtype).T + k_bias.to(dtype)
        scores.append((queries @ keys.T).mean(dim=1) / math.sqrt(q_weight.shape[0]))
    return torch.cat(scores)


def importance_scores_collapsed(
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    plan: SelectionPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same scores without the N x N product, and what the backward needs of the way there.

    The definition is linear in the keys, so the mean over them moves inside, exactly:
    ``k = Wk mean(x) + bk``, ``u = Wq^T k``, ``s_i = (x_i . u + bq . k) / sqrt(h)``.

    Returns:
        scores [T], mean tokens [S, D], mean keys ``k`` [S, h], directions ``u`` [S, D].
    """
    dtype, width, hidden = accumulation_dtype(tokens), tokens.shape[1], q_weight.shape[0]
    scores = [tokens.new_zeros(0, dtype=dtype)]
    mean_tokens, mean_keys, directions = (
        tokens.new_zeros(plan.num_pools, size, dtype=dtype) for size in (width, hidden, width)
    )
    for pool, (rows, _) in enumerate(pools(plan)):
        x = tokens[rows]
        mean_tokens[pool] = weighted_sum(x.new_ones(x.shape[0], dtype=dtype), x) / max(x.shape[0], 1)
        mean_keys[pool] = dots(k_weight, mean_tokens[pool]) + k_bias
        directions[pool] = weighted_sum(mean_keys[pool], q_weight)
        scores.append(dots(x, directions[pool]) + (mean_keys[pool] * q_bias).sum())
    return torch.cat(scores) / math.sqrt(hidden), mean_tokens, mean_keys, directions


# Products and sums instead of matrix products: torch.sum adds in a tree, which keeps float32 results accurate over
# thousands of terms, and no setting such as TF32 lowers its precision.


def dots(rows: Tensor, vector: Tensor) -> Tensor:
    """``rows @ vector`` in the dtype of the vector."""
    return torch.cat([(chunk.to(vector.dtype) * vector).sum(dim=1) for chunk in rows.split(CHUNK_ROWS)])


def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows`` in the dtype of the weights."""
    chunks = zip(weights.split(CHUNK_ROWS), rows.split(CHUNK_ROWS), strict=True)
    return torch.stack([(part[:, None] * chunk.to(part.dtype)).sum(dim=0) for part, chunk in chunks]).sum(dim=0)


def topk_indices(scores: Tensor, plan: SelectionPlan) -> Tensor:
    """int64 [K]: rows of the k largest scores of every pool, ascending; ties to the smaller row, NaN last."""
    # torch.sort ranks NaN above +Inf; two stable sorts put it below -Inf
    kept = [torch.zeros(0, dtype=torch.int64, device=scores.device)]
    for rows, k in pools(plan):
        pool = scores[rows]
        order = pool.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).sort(descending=True, stable=True)[1]
        order = order[pool[order].isnan().to(torch.uint8).sort(stable=True)[1]]
        kept.append(order[:k].sort()[0] + rows.start)
    return torch.cat(kept)


def topk_mask(scores: Tensor, plan: SelectionPlan) -> Tensor:
    """bool [T]: True where ``topk_indices`` keeps the row."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[topk_indices(scores, plan)] = True
    return mask


def soft_topk(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """``p_i = sigmoid((s_i + t) / temperature)`` with ``t`` such that every pool sums to k.

    Returns:
        probabilities [T] and thresholds ``t`` [S]. A pool with k = 0 has p = 0 and t = -inf; one with
        k = N has p = 1 and t = +inf; both have zero gradients.
    """
    probs = [scores.new_zeros(0, dtype=accumulation_dtype(scores))]
    thresholds = []
    for rows, k in pools(plan):
        logits, threshold = _soft_topk_logits(scores[rows], k, temperature)
        probs.append(torch.sigmoid(logits).to(probs[0].dtype))
        thresholds.append(threshold.to(probs[0].dtype))
    return torch.cat(probs), torch.stack(thresholds) if thresholds else probs[0]


def _soft_topk_logits(scores: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits ``(s + t) / temperature`` and ``t`` of one pool in float64, differentiable through ``t``."""
    pivot, shift = solve_shift(scores.detach(), k, temperature)
    if not math.isfinite(shift):
        zeros = 0.0 * _finite(scores.double())  # keeps the graph: the gradient is zero, not absent
        return zeros + shift, zeros.sum() + shift
    centred = (_finite(scores.double()) - pivot) / temperature
    # one Newton step at the root leaves its value and carries the derivative: d shift / d z_i = -v_i / V
    fixed = torch.sigmoid(centred.detach() + shift)
    slopes = fixed * torch.sigmoid(-(centred.detach() + shift))
    total = slopes.sum()
    weights = slopes / total if total > 0 else torch.zeros_like(slopes)
    # zero weights on saturated scores must not meet their infinite logits
    response = torch.where(weights > 0, weights * centred, 0.0).sum()
    logits = centred + (shift - (response - response.detach()))
    threshold = shift * temperature - pivot - temperature * (response - response.detach())
    return logits, threshold


def solve_shift(scores: Tensor, k: int, temperature: float) -> tuple[float, float]:
    """Pivot and shift of one pool: ``sum sigmoid((s_i - pivot) / temperature + shift) = k``.

    The pivot is the k-th largest score, so that the shift stays small and exact in float32 where the
    threshold itself would not. Newton's method, with bisection wherever a step leaves the bracket.
    k = 0 and k = N have no finite root: pivot 0, shift -inf and +inf.
    """
    n = scores.numel()
    if k == 0 or k == n:
        return 0.0, math.inf if k else -math.inf
    finite = _finite(scores.double())
    pivot = finite.kthvalue(n - k + 1)[0]
    centred = (finite - pivot) / temperature
    logit = math.log(k / (n - k))
    # at most k - 1 scores lie above the pivot: the sum is below k where the others add less than one
    low = max(logit - centred.max().item(), -math.log(n - k + 1))
    high = min(logit - centred.min().item(), SATURATION)
    shift = min(max(0.0, low), high)
    for _ in range(MAX_STEPS):
        probs = torch.sigmoid(centred + shift)
        excess = probs.sum().item() - k
        if excess > 0:
            high = shift
        else:
            low = shift
        slope = (probs * torch.sigmoid(-centred - shift)).sum().item()
        following = shift - excess / slope if slope > 0 else math.nan
        if not low < following < high:
            following = 0.5 * (low + high)
        if following == shift or abs(excess) <= 1e-15 * k:
            break
        shift = following
    return pivot.item(), shift


def _finite(scores: Tensor) -> Tensor:
    largest = torch.finfo(torch.float32).max
    return scores.nan_to_num(nan=-largest, posinf=largest, neginf=-largest)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """[K, D]: the rows ``indices`` of ``tokens``."""
    return tokens[indices]


def straight_through_gather(
    tokens: Tensor,
    scores: Tensor,
    plan: SelectionPlan,
    temperature: float = 1.0,
    *,
    scale: float = 1.0,
    selection_scores: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hard forward, soft backward: ``scale`` times the kept rows; the credit ``<grad_i, x_i>`` of a kept
    row reaches the scores through the Jacobian of ``soft_topk`` as if it were the gradient of ``p_i``."""
    indices = topk_indices(scores if selection_scores is None else selection_scores, plan)
    probs, _ = soft_topk(scores, plan, temperature)
    credit = (probs - probs.detach())[indices, None].to(tokens.dtype)
    return scale * tokens[indices] + credit * tokens.detach()[indices], indices


def straight_through_mask(
    tokens: Tensor,
    scores: Tensor,
    plan: SelectionPlan,
    temperature: float = 1.0,
    *,
    dropped_scale: float = 0.0,
    selection_scores: Tensor | None = None,
) -> Tensor:
    """The same with every row in its place: kept rows as they are, dropped rows times ``dropped_scale``.
    Every row has a credit ``<grad_i, x_i>``, so dropped tokens learn as well."""
    mask = topk_mask(scores if selection_scores is None else selection_scores, plan)
    probs, _ = soft_topk(scores, plan, temperature)
    factors = torch.where(mask, 1.0, dropped_scale).to(tokens.dtype)[:, None]
    credit = (probs - probs.detach())[:, None].to(tokens.dtype)
    return factors * tokens + credit * tokens.detach()


def topk_consistency_loss(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> Tensor:
    """Scalar: binary cross-entropy of ``soft_topk`` towards the hard mask, mean over all tokens.

    In logits ``x``: ``mean(softplus(x) - m x)``, the stable form. Pools with k = 0 or k = N agree with their
    mask exactly and add nothing.
    """
    mask = topk_mask(scores, plan)
    total = 0.0 * _finite(scores.double()).sum()  # keeps the graph where no pool adds to it
    for rows, k in pools(plan):
        if 0 < k < rows.stop - rows.start:
            logits, _ = _soft_topk_logits(scores[rows], k, temperature)
            total = total + F.softplus(torch.where(mask[rows], -logits, logits)).sum()
    return (total / max(plan.total_tokens, 1)).to(accumulation_dtype(scores))


def soft_topk_with_loss(scores: Tensor, plan: SelectionPlan, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """``soft_topk`` and ``topk_consistency_loss``."""
    return *soft_topk(scores, plan, temperature), topk_consistency_loss(scores, plan, temperature)


def select_tokens(
    tokens: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, plan: SelectionPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, Top-K, gather: kept rows [K, D], their indices [K], scores [T]."""
    scores = importance_scores(tokens, q_weight, q_bias, k_weight, k_bias, plan)
    indices = topk_indices(scores, plan)
    return tokens[indices], indices, scores
