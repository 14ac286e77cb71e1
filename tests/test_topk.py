"""topk_indices and topk_mask."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from backends import BACKENDS, use_backend

import vs_kernels as vk
from vs_kernels import SelectionPlan

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38]


def kept_by_stable_sort(scores: torch.Tensor, plan: SelectionPlan) -> torch.Tensor:
    """NumPy's stable sort of the negated scores, which puts NaN last and keeps the order of ties."""
    kept, start = [], 0
    for length, k in zip(plan.lengths, plan.ks, strict=True):
        order = np.argsort(-scores[start : start + length].numpy(), kind="stable")
        kept.append(np.sort(order[:k]) + start)
        start += length
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *kept]))


def check(scores: torch.Tensor, plan: SelectionPlan) -> None:
    expected = kept_by_stable_sort(scores, plan)
    indices = vk.topk_indices(scores, plan)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, expected)
    mask = vk.topk_mask(scores, plan)
    assert torch.equal(mask.nonzero()[:, 0], expected)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[torch.Tensor, SelectionPlan]:
    lengths = draw(st.lists(st.integers(0, 70), max_size=6))
    ks = [draw(st.integers(0, length)) for length in lengths]
    few = st.sampled_from([*SPECIAL, 1.0, 2.0, 2.0000002])
    values = draw(st.lists(few | st.floats(width=32), min_size=sum(lengths), max_size=sum(lengths)))
    return torch.tensor(values, dtype=torch.float32), SelectionPlan(lengths, ks)


@pytest.mark.parametrize("name", BACKENDS)
@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(case=ragged())
def test_ties_and_special_values(name: str, case: tuple[torch.Tensor, SelectionPlan]) -> None:
    with use_backend(name):
        check(*case)


@pytest.mark.parametrize("distinct", [1, 3, 50, 10**9])
def test_ragged_pools_with_heavy_ties(backend: str, distinct: int) -> None:
    lengths = [1, 5, 1023, 1024, 1025, 4096, 70001, 0, 33]
    scores = torch.randint(0, distinct, (sum(lengths),)).float()
    for budget in (0.01, 0.2, 0.77, 1.0):
        check(scores, SelectionPlan.from_budget(lengths, budget))


@pytest.mark.parametrize("k", [1, 2, 200_000, 999_999, 1_000_000])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan"])
def test_a_million_scores(backend: str, kind: str, k: int) -> None:
    scores = torch.randn(1_000_000)
    if kind == "ties":
        scores = (scores * 2).round()
    elif kind == "nan":
        scores[torch.rand(1_000_000) < 0.9] = math.nan
    check(scores, SelectionPlan([1_000_000], [k]))


@pytest.mark.parametrize("length", [8192, 16_384, 150_000])
@pytest.mark.parametrize("sampled", [-100.0, 100.0, math.nan])
def test_evenly_spaced_scores_unlike_the_others(backend: str, length: int, sampled: float) -> None:
    """Where a large pool is searched first is told by some of its scores."""
    scores = torch.randn(length)
    scores[torch.arange(512) * length // 512] = sampled
    for k in (1, 100, 2000, length // 2, length - 1):
        check(scores, SelectionPlan([length], [k]))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.7, 0.99])
def test_large_pools_over_all_magnitudes(backend: str, share: float) -> None:
    """Huge, tiny and huge negative scores: as many bits apart as can be, with the k-th in the gap between two kinds."""
    scores = torch.randn(20_000).abs() + 1
    kind = torch.randint(0, 10, scores.shape)
    scores *= torch.where(kind < 5, 1e30, torch.where(kind < 7, 1e-30, -1e37))
    check(scores, SelectionPlan([20_000], [int(20_000 * share)]))


@pytest.mark.interpreted
def test_scores_that_differ_in_the_last_bit(backend: str) -> None:
    scores = torch.nextafter(torch.ones(4096), torch.rand(4096).round() * 2)
    check(scores, SelectionPlan([4096], [1500]))


@pytest.mark.interpreted
def test_strided_scores(backend: str) -> None:
    scores, plan = torch.randn(60, 2)[:, 0], SelectionPlan([60], [9])
    assert torch.equal(vk.topk_indices(scores, plan), kept_by_stable_sort(scores.contiguous(), plan))


def test_nothing_to_differentiate() -> None:
    scores, plan = torch.randn(9, requires_grad=True), SelectionPlan([9], [2])
    assert not vk.topk_indices(scores, plan).requires_grad
    assert not vk.topk_mask(scores, plan).requires_grad


@pytest.mark.parametrize("operator", [vk.topk_indices, vk.topk_mask])
@pytest.mark.parametrize(
    ("scores", "plan", "error", "message"),
    [
        (torch.randn(4).double(), SelectionPlan([4], [1]), TypeError, "scores: got torch.float64, expected float32"),
        (torch.randn(4).bfloat16(), SelectionPlan([4], [1]), TypeError, "scores: got torch.bfloat16"),
        (torch.randn(5), SelectionPlan([4], [1]), ValueError, "scores: got 5 rows, expected 4"),
        (torch.randn(2, 2, 2), SelectionPlan([8], [1]), ValueError, r"scores: got shape \(2, 2, 2\)"),
        (torch.randn(2, 4), SelectionPlan([3, 5], [1, 1]), ValueError, r"scores: got shape \(2, 4\)"),
        (torch.randn(4), None, TypeError, "plan: got NoneType"),
        ("scores", SelectionPlan([4], [1]), TypeError, "scores: got str"),
    ],
)
def test_errors(operator, scores, plan, error, message) -> None:
    with pytest.raises(error, match=message):
        operator(scores, plan)
