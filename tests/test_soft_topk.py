"""soft_topk and topk_consistency_loss."""

import math

import pytest
import torch
import torch.nn.functional as F

import vs_kernels as vk
from vs_kernels import SelectionPlan, reference

TEMPERATURES = [0.01, 0.1, 1.0, 3.0]


def rows(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, generator=generator)
    return {
        "normal": normal,
        "constant": torch.full((n,), 0.7),
        "bimodal": normal.sign() * 5 + normal * 1e-3,
        "spread": (normal * 3).sinh() / 3e3 * 1e6 / 10,
        "signed zeros": normal.sign() * 0.0,
        "fresh": normal * 1e-6,
        "tied": (normal * 2).round(),
    }[kind]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", ["normal", "constant", "bimodal", "spread", "signed zeros", "fresh", "tied"])
def test_probabilities_sum_to_k(backend: str, kind: str, temperature: float) -> None:
    for n in (2, 7, 1000, 16384):
        scores = rows(kind, n)
        for k in sorted({1, 2, max(1, n // 50), max(1, n // 5), n // 2, n - 1, n}):
            probs, threshold = vk.soft_topk(scores, SelectionPlan([n], [k]), temperature)
            assert abs(probs.double().sum().item() - k) <= 1e-5 * k, (n, k)
            assert probs.min() >= 0 and probs.max() <= 1
            assert not threshold.isnan().any()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_a_million_scores(backend: str, temperature: float) -> None:
    scores = torch.randn(1_000_000)
    for k in (1, 200_000, 999_999):
        probs, _ = vk.soft_topk(scores, SelectionPlan([1_000_000], [k]), temperature)
        assert abs(probs.double().sum().item() - k) <= 1e-5 * k


@pytest.mark.interpreted
def test_threshold_solves_the_equation(backend: str) -> None:
    scores, plan = torch.randn(700), SelectionPlan([200, 500], [30, 260])
    probs, thresholds = vk.soft_topk(scores, plan, 0.3)
    spread = thresholds.double().repeat_interleave(torch.tensor(plan.lengths))
    torch.testing.assert_close(torch.sigmoid((scores.double() + spread) / 0.3).float(), probs, rtol=2e-6, atol=1e-7)


def bisection(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """The published way, in float64 with a bracket that always holds the root."""
    low, high = -scores.max() - 50 * temperature, -scores.min() + 50 * temperature
    for _ in range(200):
        middle = (low + high) / 2
        above = torch.sigmoid((scores + middle) / temperature).sum() > k
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.sigmoid((scores + middle) / temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_reference_agrees_with_bisection(temperature: float) -> None:
    scores = torch.randn(400, dtype=torch.float64)
    for k in (1, 80, 399):
        probs, _ = reference.soft_topk(scores, SelectionPlan([400], [k]), temperature)
        torch.testing.assert_close(probs, bisection(scores, k, temperature), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_gradients_are_those_of_the_formulas(backend: str, temperature: float) -> None:
    plan = SelectionPlan([300, 40], [50, 13])
    scores = torch.randn(340, requires_grad=True)
    probs, thresholds = vk.soft_topk(scores, plan, temperature)
    g, gt = torch.randn(340), torch.randn(2)
    (actual,) = torch.autograd.grad([probs, thresholds], scores, [g, gt])
    start = 0
    for pool, (length, k) in enumerate(zip(plan.lengths, plan.ks, strict=True)):
        row = slice(start, start + length)
        p = bisection(scores[row].detach().double(), k, temperature)
        v = p * (1 - p)
        mean = (v * g[row]).sum() / v.sum()
        truth = v * (g[row] - mean) / temperature - gt[pool] * v / v.sum()
        torch.testing.assert_close(actual[row].double(), truth, rtol=1e-5, atol=1e-6 * float(truth.abs().max()))
        start += length


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gradcheck_of_the_reference(temperature: float) -> None:
    plan = SelectionPlan([6, 0, 9, 3, 2], [2, 0, 4, 3, 0])
    scores = torch.randn(20, dtype=torch.float64, requires_grad=True)
    finite = [0, 2]  # pools with 0 < k < N; the thresholds of the others are infinite

    def soft(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probs, thresholds = reference.soft_topk(s, plan, temperature)
        return probs, thresholds[finite]

    assert torch.autograd.gradcheck(soft, scores)
    assert torch.autograd.gradcheck(lambda s: reference.topk_consistency_loss(s, plan, temperature), scores)


@pytest.mark.interpreted
@pytest.mark.parametrize(("k", "value", "threshold"), [(0, 0.0, -math.inf), (5, 1.0, math.inf)])
def test_none_and_all(backend: str, k: int, value: float, threshold: float) -> None:
    scores = torch.tensor([1.0, math.inf, -math.inf, math.nan, 2.0], requires_grad=True)
    plan = SelectionPlan([5], [k])
    probs, thresholds = vk.soft_topk(scores, plan)
    assert probs.tolist() == [value] * 5 and thresholds.tolist() == [threshold]
    loss = vk.topk_consistency_loss(scores, plan)
    assert loss.item() == 0
    (grad,) = torch.autograd.grad([probs.sum(), loss], scores)
    assert grad.tolist() == [0.0] * 5


@pytest.mark.interpreted
def test_one_token(backend: str) -> None:
    scores = torch.tensor([3.0], requires_grad=True)
    probs, _ = vk.soft_topk(scores, SelectionPlan([1], [1]))
    assert probs.tolist() == [1.0]
    assert torch.autograd.grad(probs.sum(), scores)[0].tolist() == [0.0]


@pytest.mark.interpreted
def test_all_saturated(backend: str) -> None:
    scores = torch.tensor([1e6, 1e6, -1e6, -1e6], requires_grad=True)
    plan = SelectionPlan([4], [2])
    probs, _ = vk.soft_topk(scores, plan, 0.01)
    assert probs.tolist() == [1.0, 1.0, 0.0, 0.0]
    loss = vk.topk_consistency_loss(scores, plan, 0.01)
    assert 0 <= loss.item() < 1e-12
    (grad,) = torch.autograd.grad([probs.sum(), loss], scores)
    assert grad.tolist() == [0.0] * 4


@pytest.mark.interpreted
def test_special_scores_never_make_nan(backend: str) -> None:
    scores = torch.tensor([0.5, math.inf, -math.inf, math.nan, -0.0, 0.0, 2.0, 3e38, -3e38], requires_grad=True)
    for k in range(1, 9):
        plan = SelectionPlan([9], [k])
        probs, _ = vk.soft_topk(scores, plan, 0.7)
        assert abs(probs.double().sum().item() - k) <= 1e-5 * k
        (grad,) = torch.autograd.grad(probs, scores, torch.randn(9))
        assert grad.isfinite().all()


@pytest.mark.interpreted
def test_small_slopes_keep_their_precision(backend: str) -> None:
    """v of a nearly kept token is far below the rounding of p: it must come from the logit."""
    scores = torch.tensor([20.0, 18.0, 0.1, -0.1], requires_grad=True)
    plan = SelectionPlan([4], [3])
    probs, _ = vk.soft_topk(scores, plan)
    (grad,) = torch.autograd.grad(probs, scores, torch.tensor([1.0, -1.0, 0.0, 0.0]))
    truth_scores = scores.detach().double().requires_grad_()
    truth_probs, _ = reference.soft_topk(truth_scores, plan)
    (truth,) = torch.autograd.grad(truth_probs, truth_scores, torch.tensor([1.0, -1.0, 0.0, 0.0]).double())
    assert 0 < truth[0].abs() < 1e-7
    torch.testing.assert_close(grad.double(), truth, rtol=1e-4, atol=0)


def test_consistency_loss_is_the_cross_entropy(backend: str) -> None:
    plan = SelectionPlan([300, 40], [50, 13])
    scores = torch.randn(340)
    loss = vk.topk_consistency_loss(scores, plan, 0.5)
    probs, _ = reference.soft_topk(scores.double(), plan, 0.5)
    truth = F.binary_cross_entropy(probs, vk.topk_mask(scores, plan).double())
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])
@pytest.mark.parametrize("kind", ["normal", "bimodal", "tied", "fresh"])
def test_loss_wherever_the_threshold_is(backend: str, kind: str, temperature: float) -> None:
    """Thresholds near the k-th score and up to seven temperatures from it."""
    for k in (1, 2, 100, 500, 690, 699):
        plan = SelectionPlan([700], [k])
        single = rows(kind, 700).requires_grad_()
        double = single.detach().double().requires_grad_()
        probs, _, loss = vk.soft_topk_with_loss(single, plan, temperature)
        true_loss = reference.topk_consistency_loss(double, plan, temperature)
        # a logit of 87 is rounded to 4e-6, and so is p, relative to itself; beyond it p is subnormal
        true_probs, _ = reference.soft_topk(double, plan, temperature)
        torch.testing.assert_close(probs.double(), true_probs, rtol=1e-5, atol=1e-37)
        torch.testing.assert_close(loss.double(), true_loss, rtol=2e-6, atol=0)
        (grad,), (truth,) = torch.autograd.grad(loss, single), torch.autograd.grad(true_loss, double)
        torch.testing.assert_close(grad.double(), truth, rtol=1e-4, atol=4e-6 * float(truth.abs().max()))
        assert grad.double().sum().abs() <= 2e-6 * grad.double().abs().sum()


@pytest.mark.interpreted
def test_gradient_of_the_thresholds_alone(backend: str) -> None:
    plan, weights = SelectionPlan([30, 10], [6, 3]), torch.tensor([0.5, -2.0])
    scores = torch.randn(40)
    single, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
    (truth,) = torch.autograd.grad(reference.soft_topk(double, plan, 0.5)[1], double, weights.double())
    for operator in (vk.soft_topk, vk.soft_topk_with_loss):
        (grad,) = torch.autograd.grad(operator(single, plan, 0.5)[1], single, weights)
        torch.testing.assert_close(grad.double(), truth, rtol=1e-5, atol=1e-7)


@pytest.mark.interpreted
def test_consistency_loss_without_tokens(backend: str) -> None:
    assert vk.topk_consistency_loss(torch.zeros(0), SelectionPlan([], [])).item() == 0


@pytest.mark.parametrize(("n", "k"), [(46, 3), (64, 4), (4600, 300)])
def test_loss_of_equal_scores(backend: str, n: int, k: int) -> None:
    """Equal terms, whose roundings all go one way: the loss is the entropy of k / n, within a few units of float32."""
    share = k / n
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    loss = vk.topk_consistency_loss(torch.full((n,), 0.3), SelectionPlan([n], [k]))
    assert abs(loss.item() / entropy - 1) < 2e-7


@pytest.mark.interpreted
def test_with_loss_is_both_at_once(backend: str) -> None:
    """Bit for bit where no gradient is added up; the gradient is the sum of the two."""
    plan = SelectionPlan([40, 7, 0, 5, 3], [8, 7, 0, 0, 1])
    scores, grad_probs = torch.randn(55), torch.randn(55)
    scores[[3, 41]] = math.nan
    apart, together = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    probs, thresholds = vk.soft_topk(apart, plan, 0.3)
    loss = vk.topk_consistency_loss(apart, plan, 0.3)
    results = vk.soft_topk_with_loss(together, plan, 0.3)
    for result, expected in zip(results, (probs, thresholds, loss), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    ((probs * grad_probs).sum() + 3 * loss).backward()
    ((results[0] * grad_probs).sum() + 3 * results[2]).backward()
    torch.testing.assert_close(together.grad, apart.grad, rtol=1e-5, atol=1e-6)
    (only_loss,) = torch.autograd.grad(vk.soft_topk_with_loss(together, plan, 0.3)[2], together)
    (expected,) = torch.autograd.grad(vk.topk_consistency_loss(apart, plan, 0.3), apart)
    torch.testing.assert_close(only_loss, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("operator", [vk.soft_topk, vk.soft_topk_with_loss, vk.topk_consistency_loss])
@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (0.0, ValueError, "temperature: got 0.0, expected a number from 1e-37 to 1e37"),
        (-1, ValueError, "temperature: got -1"),
        (math.nan, ValueError, "temperature: got nan"),
        (math.inf, ValueError, "temperature: got inf"),
        (1e-38, ValueError, "temperature: got 1e-38"),
        (1e38, ValueError, r"temperature: got 1e\+38"),
        ("hot", TypeError, "temperature: got str, expected a host number"),
        (torch.tensor(1.0), TypeError, "temperature: got Tensor, expected a host number"),
    ],
)
def test_errors(operator, temperature, error, message) -> None:
    with pytest.raises(error, match=message):
        operator(torch.randn(4), SelectionPlan([4], [1]), temperature)


@pytest.mark.interpreted
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_scores_that_are_not_finite_share_a_place_without_gradient(backend: str, value: float) -> None:
    """Three of them for the last place: p = 1/3 each, and no gradient, since no step of theirs makes a difference."""
    plan = SelectionPlan([12], [10])
    scores = torch.randn(12)
    scores[[2, 5, 11]] = value
    weights = torch.randn(12)
    single, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
    probs, _ = vk.soft_topk(single, plan, 0.5)
    torch.testing.assert_close(probs[[2, 5, 11]], torch.full((3,), 1 / 3), rtol=1e-5, atol=0)
    (probs * weights).sum().backward()
    true_probs, _ = reference.soft_topk(double, plan, 0.5)
    (true_probs * weights).sum().backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(single.grad[[2, 5, 11]], torch.zeros(3))
    other = scores.clone().requires_grad_()
    vk.topk_consistency_loss(other, plan, 0.5).backward()
    assert torch.equal(other.grad[[2, 5, 11]], torch.zeros(3))
