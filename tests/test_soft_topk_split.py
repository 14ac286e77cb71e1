"""Hard and soft Top-K by many programs, in Triton's interpreter: small tiles, so that short pools take many."""

import math

import pytest
import torch
from backends import HAS_TRITON, use_backend

import vs_kernels as vk
from vs_kernels import SelectionPlan, reference

if not HAS_TRITON:
    pytest.skip("Triton is not installed", allow_module_level=True)

from test_soft_topk import TEMPERATURES, rows

from bench.traffic_count import counted, no_host_waits
from vs_kernels.kernels import choose, newton_nodes, soft_topk_split

RAGGED = SelectionPlan([3, 140, 0, 64, 65], [1, 40, 0, 64, 64])


@pytest.fixture(autouse=True)
def many_programs(monkeypatch):
    """Fresh memory holds NaN, so that an entry no kernel wrote shows up."""
    monkeypatch.setattr(choose, "MOST_IN_REGISTERS", 0)
    monkeypatch.setattr(soft_topk_split, "TILE_ROWS", 64)
    monkeypatch.setattr(soft_topk_split, "MOST_SPLITS", 2)
    monkeypatch.setattr(soft_topk_split, "NODES_AT_ONCE", 16)
    torch.use_deterministic_algorithms(True)
    with use_backend("triton"):
        yield
    torch.use_deterministic_algorithms(False)


def check(scores: torch.Tensor, plan: SelectionPlan, temperature: float) -> None:
    probs, thresholds, loss = vk.soft_topk_with_loss(scores, plan, temperature)
    truth, true_thresholds = reference.soft_topk(scores.double(), plan, temperature)
    torch.testing.assert_close(probs.double(), truth, rtol=0, atol=2e-6)
    assert not thresholds.isnan().any()
    assert torch.equal(thresholds.isinf(), true_thresholds.isinf())
    for pool, k in reference.pools(plan):
        assert abs(probs[pool].double().sum().item() - k) <= 1e-5 * k
    true_loss = reference.topk_consistency_loss(scores.double(), plan, temperature)
    torch.testing.assert_close(loss.double(), true_loss, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", ["normal", "constant", "bimodal", "spread", "signed zeros", "fresh", "tied"])
def test_every_kind_of_row(kind: str, temperature: float) -> None:
    n, ks = 150, [1, 30, 149]
    check(rows(kind, n).repeat(len(ks)), SelectionPlan([n] * len(ks), ks), temperature)


@pytest.mark.parametrize("step", [2.0**-10, 1.0, 8.0, 33.0, 200.0, 1e9])
def test_large_scores_at_a_low_temperature(step: float) -> None:
    """Neighbouring float32 lie so many temperatures apart, on both sides of where nodes would be too many."""
    around = 2.0**20 + torch.randn(100).mul_(40).round_().mul_(0.0625 + 0.0625 * (torch.rand(100) < 0.1))
    plan = SelectionPlan([100, 100, 100], [1, 25, 95])
    check(torch.cat([around, -around, around - 2.0**20 * (torch.arange(100) % 7 == 0)]), plan, 0.0625 / step)


def test_offset_that_moves_the_kept_far_from_the_dropped() -> None:
    """The threshold lies in the middle, as long as exp of half the gap is a float32."""
    for gap in (30.0, 50.0, 64.0, 90.0, 150.0, 190.0):
        scores = torch.cat([torch.full((30,), gap), torch.zeros(90)])
        _, threshold = vk.soft_topk(scores, SelectionPlan([120], [30]))
        assert threshold.item() == pytest.approx(-0.5 * (gap - math.log(30) + math.log(90)), abs=1e-4), gap


def test_ragged_pools_with_scores_that_are_no_numbers() -> None:
    temperature = 0.3
    scores = torch.randn(RAGGED.total_tokens).mul_(4).round_().div_(4)
    check(scores, RAGGED, temperature)
    scores[::7], scores[1::11], scores[2::13], scores[3::17] = math.nan, math.inf, -math.inf, -0.0
    probs, _ = vk.soft_topk(scores, RAGGED, temperature)
    truth, _ = reference.soft_topk(scores.double(), RAGGED, temperature)
    torch.testing.assert_close(probs.double(), truth, rtol=0, atol=2e-6)
    for ranking in (None, torch.randn(RAGGED.total_tokens).round()):
        tokens = torch.randn(RAGGED.total_tokens, 2)
        _, indices = vk.straight_through_gather(tokens, scores, RAGGED, temperature, selection_scores=ranking)
        assert torch.equal(indices, reference.topk_indices(scores if ranking is None else ranking, RAGGED))
        masked = vk.straight_through_mask(tokens, scores, RAGGED, temperature, selection_scores=ranking)
        kept = reference.topk_mask(scores if ranking is None else ranking, RAGGED)
        assert torch.equal(masked, tokens * kept[:, None])


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_gradients(temperature: float) -> None:
    scores, weights = torch.randn(RAGGED.total_tokens), torch.randn(RAGGED.total_tokens)
    grads = []
    for leaf in (scores.clone(), scores.double()):
        leaf.requires_grad_()
        operators = vk if leaf.dtype == torch.float32 else reference
        probs, _, loss = operators.soft_topk_with_loss(leaf, RAGGED, temperature)
        grads.append(torch.autograd.grad(loss, leaf, retain_graph=True)[0])
        grads.append(torch.autograd.grad((probs * weights).sum() + loss, leaf)[0])
    for grad, truth in zip(grads[:2], grads[2:], strict=True):
        assert (grad - truth).abs().max() <= 2e-5 * truth.abs().max()
    (grad,) = torch.autograd.grad(vk.topk_consistency_loss(leaf := scores.requires_grad_(), RAGGED, temperature), leaf)
    assert torch.equal(grad, grads[0])


@pytest.mark.parametrize(("operator", "launches"), [("soft_topk", 4), ("soft_topk_with_loss", 4)])
def test_launches_whatever_the_number_of_pools(operator: str, launches: int) -> None:
    scores = torch.randn(RAGGED.total_tokens)
    with counted() as traffic:
        getattr(vk, operator)(scores, RAGGED)
    assert traffic.launches <= launches
    with no_host_waits():
        getattr(vk, operator)(scores, RAGGED)


def test_nodes_suffice_for_the_widest_bracket() -> None:
    """2^31 tokens, half of them kept, and the widest interval for the k-th score."""
    tokens = 31 * math.log(2.0)
    near = 2 * tokens + newton_nodes.MOST_WIDTH.value + newton_nodes.EXPONENTIAL.value + 1
    far = newton_nodes.SATURATED.value / newton_nodes.FAR_SPACING.value
    assert near / newton_nodes.SPACING.value + far + 3 <= newton_nodes.MOST_NODES.value
