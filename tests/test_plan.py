import pickle

import numpy as np
import pytest
import torch

from vs_kernels import SelectionPlan


def test_offsets_are_on_the_device_asked_for_whatever_the_default() -> None:
    with torch.device("meta"):
        plan = SelectionPlan([3, 4], [1, 2])
    assert plan.cu_lengths().tolist() == [0, 3, 7] and plan.cu_ks("cpu").tolist() == [0, 1, 3]
    assert plan.cu_lengths("meta").device.type == "meta"


def test_sizes_and_offsets() -> None:
    plan = SelectionPlan([5, 0, 3], [2, 0, 3])
    assert (plan.num_pools, plan.total_tokens, plan.total_kept, plan.max_length) == (3, 8, 5, 5)
    assert plan.cu_lengths().tolist() == [0, 5, 5, 8]
    assert plan.cu_ks("cpu").tolist() == [0, 2, 2, 5]
    assert plan.cu_ks().dtype == torch.int64


def test_no_pools() -> None:
    plan = SelectionPlan([], [])
    assert (plan.num_pools, plan.total_tokens, plan.max_length) == (0, 0, 0)
    assert plan.cu_lengths().tolist() == [0]


@pytest.mark.parametrize(
    ("rounding", "expected"), [("floor", (2, 1, 1, 0)), ("round", (2, 2, 1, 0)), ("ceil", (3, 2, 1, 0))]
)
def test_from_budget_rounds(rounding: str, expected: tuple[int, ...]) -> None:
    assert SelectionPlan.from_budget([12, 8, 1, 0], 0.2, rounding=rounding).ks == expected


def test_from_budget_follows_the_published_formula() -> None:
    lengths = list(range(1, 2000))
    for budget in (0.1, 0.2, 0.29, 0.3, 1 / 3, 1.0):
        assert SelectionPlan.from_budget(lengths, budget).ks == tuple(max(1, int(n * budget)) for n in lengths)


def test_from_budget_minimum_and_budget_per_pool() -> None:
    assert SelectionPlan.from_budget([100, 3, 0], 0.01, minimum=4).ks == (4, 3, 0)
    assert SelectionPlan.from_budget([10, 10], [0.5, 1.0]).ks == (5, 10)


def test_dense() -> None:
    assert SelectionPlan.dense(3, 10, k=4) == SelectionPlan([10] * 3, [4] * 3)
    assert SelectionPlan.dense(2, 10, budget=0.3) == SelectionPlan([10] * 2, [3] * 2)


def test_a_plan_is_a_value() -> None:
    plan = SelectionPlan([5, 3], [2, 1])
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(plan) == hash(SelectionPlan((5, 3), np.array([2, 1])))
    assert plan != SelectionPlan([5, 3], [2, 2])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SelectionPlan([4], [5]), ValueError, r"ks\[0\]: got 5, expected 0 <= k <= 4"),
        (lambda: SelectionPlan([4], [-1]), ValueError, r"ks\[0\]: got -1"),
        (lambda: SelectionPlan([-4], [0]), ValueError, r"lengths\[0\]: got -4"),
        (lambda: SelectionPlan([4, 4], [1]), ValueError, "ks: got 1 entries, expected 2"),
        (lambda: SelectionPlan(torch.tensor([4]), [1]), TypeError, "lengths: got a tensor"),
        (lambda: SelectionPlan([torch.tensor(4)], [1]), TypeError, "lengths: got an entry of type Tensor"),
        (lambda: SelectionPlan([4.0], [1]), TypeError, "lengths: got an entry of type float"),
        (lambda: SelectionPlan.from_budget([4], 0), ValueError, r"budget: got 0, expected a number in \(0, 1\]"),
        (lambda: SelectionPlan.from_budget([4], 1.5), ValueError, "budget: got 1.5"),
        (lambda: SelectionPlan.from_budget([4], float("nan")), ValueError, "budget: got nan"),
        (lambda: SelectionPlan.from_budget([4], "half"), TypeError, "budget"),
        (lambda: SelectionPlan.from_budget([4], [0.5, 0.5]), ValueError, "budget: got 2 entries, expected 1"),
        (lambda: SelectionPlan.from_budget([4], 0.5, rounding="up"), ValueError, "rounding: got 'up'"),
        (lambda: SelectionPlan.from_budget([4], 0.5, minimum=-1), ValueError, "minimum: got -1"),
        (lambda: SelectionPlan.dense(2, 4), ValueError, "expected exactly one"),
        (lambda: SelectionPlan.dense(2, 4, k=1, budget=0.5), ValueError, "expected exactly one"),
    ],
)
def test_errors(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
