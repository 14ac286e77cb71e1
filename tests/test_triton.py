"""The Triton kernels in the interpreter: all operators against float64, long pools, model widths, host waits."""

import math

import pytest
import torch
from backends import HAS_TRITON, use_backend

import vs_kernels as vk
from vs_kernels import SelectionPlan, library, reference, verify

if not HAS_TRITON:
    pytest.skip("Triton is not installed", allow_module_level=True)

from bench.gpu_cases import Case, cases
from bench.traffic_count import HostWait, counted, no_host_waits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLANS = {
    "ragged": SelectionPlan([41, 1, 0, 20], [9, 1, 0, 20]),
    "more pools than share a weight": SelectionPlan.from_budget([3, 8, 1, 5, 2, 9, 4, 6, 7], 0.4),
}
CASES = [
    (name, dtype) for name in verify.CALLS for dtype in (DTYPES if name in verify.TAKES_TOKENS else (torch.float32,))
]


@pytest.fixture(autouse=True)
def interpreted():
    """Fresh memory holds NaN, so that an entry no kernel wrote shows up."""
    torch.use_deterministic_algorithms(True)
    with use_backend("triton"):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_agrees_with_float64(name: str, dtype: torch.dtype, plan: SelectionPlan) -> None:
    inputs = verify.Inputs.random(plan, width=72, hidden=36, dtype=dtype)
    for result, error, allowed in verify.errors(vk, name, inputs):
        assert error <= allowed, result


@pytest.mark.parametrize("width", [1, 2048, 3583, 3584, 4096, 5120])
@pytest.mark.parametrize("name", sorted(verify.TAKES_TOKENS))
def test_widths_of_models_and_odd_ones(name: str, width: int) -> None:
    inputs = verify.Inputs.random(SelectionPlan([6, 3], [2, 1]), width, hidden=5, dtype=torch.bfloat16)
    for result, error, allowed in verify.errors(vk, name, inputs):
        assert error <= allowed, result


def test_hidden_size_of_a_model() -> None:
    inputs = verify.Inputs.random(SelectionPlan([9], [2]), width=64, hidden=1792, dtype=torch.float32)
    for result, error, allowed in verify.errors(vk, "importance_scores", inputs):
        assert error <= allowed, result


def scores_of_every_kind(count: int) -> torch.Tensor:
    """Ties, both zeros, infinities and NaN among numbers."""
    scores = torch.randn(count).mul_(4).round_().div_(4)
    scores[::7], scores[1::11], scores[2::13], scores[3::17] = math.nan, math.inf, -math.inf, -0.0
    return scores


@pytest.mark.parametrize(
    ("lengths", "ks"),
    [([9000, 5], [1800, 2]), ([16385], [3000]), ([3, 20000, 0, 17000], [1, 1, 0, 17000])],
    ids=["registers", "one beyond", "ragged"],
)
def test_long_pools(lengths: list[int], ks: list[int]) -> None:
    plan = SelectionPlan(lengths, ks)
    scores, ranking = scores_of_every_kind(plan.total_tokens), torch.randn(plan.total_tokens).round()
    assert torch.equal(vk.topk_indices(scores, plan), reference.topk_indices(scores, plan))
    assert torch.equal(vk.topk_mask(scores, plan), reference.topk_mask(scores, plan))
    tokens = torch.randn(plan.total_tokens, 2)
    _, indices = vk.straight_through_gather(tokens, scores, plan, selection_scores=ranking)
    assert torch.equal(indices, reference.topk_indices(ranking, plan))


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("lengths", [[9000, 5], [17000]])
def test_soft_topk_and_loss_of_long_pools(lengths: list[int], temperature: float) -> None:
    plan = SelectionPlan.from_budget(lengths, 0.2)
    scores = torch.randn(plan.total_tokens)
    probs, _ = vk.soft_topk(scores, plan, temperature)
    truth, _ = reference.soft_topk(scores.double(), plan, temperature)
    torch.testing.assert_close(probs.double(), truth, rtol=0, atol=2e-6)
    for (rows, k), total in zip(reference.pools(plan), plan.ks, strict=True):
        assert abs(probs[rows].double().sum() - total) <= 1e-5 * k
    single, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
    loss = vk.topk_consistency_loss(single, plan, temperature)
    true_loss = reference.topk_consistency_loss(double, plan, temperature)
    torch.testing.assert_close(loss.double(), true_loss, rtol=2e-6, atol=0)
    (grad,), (true_grad,) = torch.autograd.grad(loss, single), torch.autograd.grad(true_loss, double)
    assert (grad - true_grad).abs().max() <= 2e-5 * true_grad.abs().max()
    probs_too, _, loss_too = vk.soft_topk_with_loss(scores, plan, temperature)
    torch.testing.assert_close(probs_too.double(), truth, rtol=0, atol=2e-6)
    torch.testing.assert_close(loss_too.double(), true_loss.detach(), rtol=2e-6, atol=0)


def test_the_same_choice_as_the_cpu_kernels() -> None:
    if library.CPU_PROBLEM is not None:
        pytest.skip(library.CPU_PROBLEM)
    plan = SelectionPlan([700, 30], [140, 3])
    scores = scores_of_every_kind(730)
    chosen, mask = vk.topk_indices(scores, plan), vk.topk_mask(scores, plan)
    probs, _ = vk.soft_topk(scores.nan_to_num(), plan)
    with use_backend("baseline"):
        assert torch.equal(chosen, vk.topk_indices(scores, plan))
        assert torch.equal(mask, vk.topk_mask(scores, plan))
        torch.testing.assert_close(probs, vk.soft_topk(scores.nan_to_num(), plan)[0], rtol=1e-5, atol=1e-6)


def test_runs_are_bit_identical() -> None:
    inputs = verify.Inputs.random(SelectionPlan([300, 40], [60, 8]), width=24, hidden=12, dtype=torch.float32)
    for name in ("importance_scores", "topk_consistency_loss", "straight_through_gather"):
        first, second = (verify.results(vk, name, inputs.leaves()) for _ in range(2))
        assert all(torch.equal(first[result], second[result]) for result in first)


@pytest.mark.parametrize("case", cases(48, 64), ids=lambda case: case.operator.strip())
def test_no_launcher_waits_for_the_device(case: Case) -> None:
    with no_host_waits() as launches:
        case.call()
    assert 0 < len(launches) <= case.launches


def test_a_wait_would_be_noticed() -> None:
    with no_host_waits(), pytest.raises(HostWait):
        torch.ones(1).item()


@pytest.mark.parametrize("case", cases(300, 128), ids=lambda case: case.operator.strip())
def test_launches_and_bytes(case: Case) -> None:
    with counted() as traffic:
        case.call()
    assert traffic.launches <= case.launches
    assert case.rows == 0 or traffic.rows() == case.rows


@pytest.mark.parametrize("operator", ["topk_indices", "topk_mask", "soft_topk", "soft_topk_with_loss"])
@pytest.mark.parametrize("lengths", [[300], [5000, 40]], ids=["one tile group", "several"])
def test_scores_of_a_pool_in_registers_are_read_once(operator: str, lengths: list[int]) -> None:
    inputs = verify.Inputs.random(SelectionPlan.from_budget(lengths, 0.2), 1, 1, torch.float32)
    with counted() as traffic:
        verify.CALLS[operator](vk, inputs)
    assert traffic.passes == 1
