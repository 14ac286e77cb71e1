"""straight_through_gather and straight_through_mask against the formulas, written out in float64."""

import math

import pytest
import torch

import vs_kernels as vk
from vs_kernels import SelectionPlan, reference

PLAN = SelectionPlan([120, 1, 0, 43, 20], [24, 1, 0, 9, 0])
TEMPERATURE = 0.4


def score_gradient(credit: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(v * a - v * sum(v a) / sum(v)) / temperature, pool by pool."""
    probs, _ = reference.soft_topk(scores.double(), PLAN, TEMPERATURE)
    grad = torch.zeros_like(probs)
    for rows, k in reference.pools(PLAN):
        if 0 < k < rows.stop - rows.start:
            v = probs[rows] * (1 - probs[rows])
            grad[rows] = (v * credit[rows] - v * (v * credit[rows]).sum() / v.sum()) / TEMPERATURE
    return grad


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(184, 48, requires_grad=True), torch.randn(184, requires_grad=True)


@pytest.mark.interpreted
@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_gather(backend: str, scale: float, noise: float) -> None:
    tokens, scores = inputs()
    ranking = scores.detach() + noise * torch.randn(184)
    kept, indices = vk.straight_through_gather(
        tokens, scores, PLAN, TEMPERATURE, scale=scale, selection_scores=ranking if noise else None
    )
    assert torch.equal(indices, vk.topk_indices(ranking, PLAN))
    torch.testing.assert_close(kept, scale * tokens[indices], rtol=0, atol=0)
    grad = torch.randn_like(kept)
    grad_tokens, grad_scores = torch.autograd.grad(kept, [tokens, scores], grad)
    credit = torch.zeros(184, dtype=torch.float64)
    credit[indices] = (grad.double() * tokens[indices].detach().double()).sum(dim=1)
    truth = score_gradient(credit, scores.detach())
    torch.testing.assert_close(grad_scores.double(), truth, rtol=1e-5, atol=2e-6 * float(truth.abs().max()))
    expected = torch.zeros_like(tokens)
    expected[indices] = scale * grad
    torch.testing.assert_close(grad_tokens, expected, rtol=0, atol=0)


@pytest.mark.interpreted
@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("dropped_scale", [0.0, 0.1])
def test_mask(backend: str, dropped_scale: float, noise: float) -> None:
    tokens, scores = inputs()
    ranking = scores.detach() + noise * torch.randn(184)
    out = vk.straight_through_mask(
        tokens, scores, PLAN, TEMPERATURE, dropped_scale=dropped_scale, selection_scores=ranking if noise else None
    )
    factors = torch.where(vk.topk_mask(ranking, PLAN), 1.0, dropped_scale)[:, None]
    torch.testing.assert_close(out, factors * tokens, rtol=0, atol=0)
    grad = torch.randn_like(out)
    grad_tokens, grad_scores = torch.autograd.grad(out, [tokens, scores], grad)
    truth = score_gradient((grad.double() * tokens.detach().double()).sum(dim=1), scores.detach())
    torch.testing.assert_close(grad_scores.double(), truth, rtol=1e-5, atol=2e-6 * float(truth.abs().max()))
    torch.testing.assert_close(grad_tokens, factors * grad, rtol=0, atol=0)


@pytest.mark.interpreted
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_scores_that_rank_in_another_range(backend: str, size: float) -> None:
    """The soft Top-K of the gradient is that of the scores, wherever those that rank lie."""
    tokens = torch.randn(184, 48)
    scores, ranking = (3 * torch.randn(184)).requires_grad_(), size * (torch.randn(184) + 3)
    kept, indices = vk.straight_through_gather(tokens, scores, PLAN, TEMPERATURE, selection_scores=ranking)
    masked = vk.straight_through_mask(tokens, scores, PLAN, TEMPERATURE, selection_scores=ranking)
    grad = torch.randn_like(tokens)
    every = (grad.double() * tokens.double()).sum(dim=1)
    of_kept = torch.zeros(184, dtype=torch.float64).index_copy(0, indices, every[indices])
    for out, out_grad, credit in ((kept, grad[indices], of_kept), (masked, grad, every)):
        truth = score_gradient(credit, scores.detach())
        (actual,) = torch.autograd.grad(out, scores, out_grad)
        torch.testing.assert_close(actual.double(), truth, rtol=1e-5, atol=2e-6 * float(truth.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_16_bits_is_rounded_to_the_nearest_even(backend: str, dtype: torch.dtype) -> None:
    """Times 1.5 every second one lies halfway between two; with infinities, NaN and subnormal numbers."""
    numbers = torch.arange(2**16).sub(2**15).to(torch.int16).view(dtype).view(64, 1024)
    tokens, scores = numbers.clone().requires_grad_(), torch.randn(64, requires_grad=True)
    expected = (1.5 * numbers.float()).to(dtype)
    kept, _ = vk.straight_through_gather(tokens, scores, SelectionPlan([64], [64]), scale=1.5)
    torch.testing.assert_close(kept, expected, rtol=0, atol=0, equal_nan=True)
    (grad,) = torch.autograd.grad(kept, tokens, numbers, retain_graph=True)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)
    grad, _ = torch.autograd.grad(kept, [tokens, scores], numbers)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
def test_dropped_tokens_learn_from_the_mask_but_not_from_the_gather(backend: str) -> None:
    tokens, scores = torch.eye(6), torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0], requires_grad=True)
    plan = SelectionPlan([6], [2])
    dropped = torch.zeros(6, 6)
    dropped[4, 4] = 1.0
    out = vk.straight_through_mask(tokens, scores, plan, dropped_scale=0.1)
    (grad,) = torch.autograd.grad(out, scores, dropped)
    assert grad[4] > 0 and (grad[[0, 1, 2, 3, 5]] < 0).all()
    kept, _ = vk.straight_through_gather(tokens, scores, plan)
    (grad,) = torch.autograd.grad(kept, scores, torch.ones(2, 6))
    assert (grad[:2] > 0).all() and (grad[2:] < 0).all()


@pytest.mark.interpreted
def test_no_gradient_for_selection_scores_or_frozen_tokens(backend: str) -> None:
    tokens, scores = torch.randn(20, 8), torch.randn(20, requires_grad=True)
    ranking = torch.randn(20, requires_grad=True)
    plan = SelectionPlan([20], [5])
    for out in (
        vk.straight_through_gather(tokens, scores, plan, selection_scores=ranking)[0],
        vk.straight_through_mask(tokens, scores, plan, selection_scores=ranking),
    ):
        out.sum().backward()
        assert scores.grad is not None and ranking.grad is None and tokens.grad is None


@pytest.mark.parametrize("operator", [vk.straight_through_gather, vk.straight_through_mask])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scores": torch.randn(5)}, ValueError, "scores: got 5 rows, expected 6"),
        ({"scores": torch.randn(6, device="meta")}, ValueError, "scores: got a tensor on meta, expected cpu"),
        ({"selection_scores": torch.randn(5)}, ValueError, "selection_scores: got 5 rows, expected 6"),
        ({"selection_scores": torch.randn(6).half()}, TypeError, "selection_scores: got torch.float16"),
        ({"temperature": 0}, ValueError, "temperature: got 0"),
        ({"factor": -1.0}, ValueError, "scale: got -1.0, expected a finite number >= 0"),
        ({"factor": math.nan}, ValueError, "scale: got nan"),
        ({"factor": "1"}, TypeError, "scale: got str"),
        ({"tokens": torch.randn(6, 8, dtype=torch.float64)}, TypeError, "tokens: got torch.float64"),
        ({"plan": None}, TypeError, "plan: got NoneType"),
    ],
)
def test_errors(operator, arguments, error, message) -> None:
    base = {"tokens": torch.randn(6, 8), "scores": torch.randn(6), "plan": SelectionPlan([6], [2])}
    arguments = dict(arguments)
    if "factor" in arguments:
        name = "scale" if operator is vk.straight_through_gather else "dropped_scale"
        arguments[name] = arguments.pop("factor")
    with pytest.raises(error, match=message):
        operator(**base | arguments)
