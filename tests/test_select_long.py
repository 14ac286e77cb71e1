"""select_tokens of long pools: counts made with the scores, the last program's choice, rows and indices."""

import math

import pytest
import torch
from backends import HAS_TRITON, use_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vs_kernels as vk
from vs_kernels import SelectionPlan, library, reference

if not HAS_TRITON:
    pytest.skip("Triton is not installed", allow_module_level=True)

from bench.traffic_count import counted, no_host_waits
from vs_kernels.kernels import select_digits, select_long, tiles
from vs_kernels.kernels.importance_scores import score_tokens
from vs_kernels.kernels.tiles import Tile

CPU = "baseline" if library.CPU_PROBLEM is None else "pytorch"
LONG = 16
# Values whose keys differ in the first byte, in the last alone, or not at all.
VALUES = (0.0, -0.0, 1.0, 1.0 + 2**-23, 1.5, -1.0, 300.0, 1e-40, math.inf, -math.inf, math.nan)


@pytest.fixture(autouse=True)
def many_programs():
    """Small tiles, so that pools of some tens of scores take several programs of every kind."""
    patch = pytest.MonkeyPatch()
    patch.setattr(select_digits, "LONG", LONG)
    for name, size in {"TILE": 16, "BLOCK": 8, "GRANULE": 4}.items():
        patch.setattr(select_long, name, size)
    with patch.context(), use_backend("triton"), tiles.forced({"row_dots": Tile(4, 16, 1), "rows": Tile(2, 16, 1)}):
        yield
    patch.undo()


def counts_of(scores: Tensor, plan: SelectionPlan) -> Tensor:
    """What the scorer leaves, by its definition: counts of one and of two bytes of every long pool; state of zeros."""
    counts = torch.zeros_like(select_digits.new_counts(scores, plan.num_pools))
    for begin, length in zip(plan.cu_lengths().tolist(), plan.lengths, strict=False):
        if length > LONG:
            score = scores[begin : begin + length]
            bits = torch.where(score == 0, 0.0, score).view(torch.int32).long() & 0xFFFFFFFF
            key = torch.where(bits >= 2**31, 2**32 - 1 - bits, bits + 2**31)
            key[score.isnan()] = 0
            own = counts[begin // LONG * select_digits.COUNTS.value :]
            own[:256] += torch.bincount(key >> 24, minlength=256).int()
            own[256 : select_digits.COUNTS.value] += torch.bincount(key >> 16, minlength=65536).int()
    return counts


def check_choice(scores: Tensor, plan: SelectionPlan) -> None:
    tokens = torch.arange(float(len(scores)))[:, None].expand(-1, 3)
    kept, indices = select_long.select_long(
        tokens, scores, counts_of(scores, plan), plan.cu_lengths(), plan.cu_ks(), plan.total_kept
    )
    with use_backend(CPU):
        assert torch.equal(indices, vk.topk_indices(scores, plan))
    assert torch.equal(kept, tokens[indices])


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_indices_are_those_of_the_cpu_kernels(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=4))
    plan = SelectionPlan(lengths, [data.draw(st.integers(0, length)) for length in lengths])
    values = data.draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=6))
    chosen = data.draw(st.lists(st.sampled_from(values), min_size=sum(lengths), max_size=sum(lengths)))
    check_choice(torch.tensor(chosen), plan)


@pytest.mark.parametrize("k", [0, 1, 40, 300])
def test_scores_without_ties(k: int) -> None:
    check_choice(torch.randn(2 + 300 + 50), SelectionPlan([2, 300, 50], [1, k, 7]))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_counts_are_those_of_the_scores(mean: float) -> None:
    """Also where all scores begin with the same byte."""
    plan = SelectionPlan.from_budget([5, 70, 0, 33, 17, 16], 0.3)
    tokens, weight = torch.randn(plan.total_tokens, 24), torch.randn(6, 24)
    bias = torch.full([6], mean)
    scores, *_, counts = score_tokens(tokens, weight, bias, weight, bias, plan.cu_lengths(), counted=True)
    assert torch.equal(counts, counts_of(scores, plan))
    if mean:
        assert counts.max() == 70


def test_ragged_pools_take_six_launches_and_agree_with_their_scores() -> None:
    plan = SelectionPlan([3, 90, 0, 40, 1, 16, 17], [1, 20, 0, 40, 1, 3, 2])
    # Few different rows, so that there are many ties.
    tokens = torch.randn(5, 20)[torch.randint(5, [plan.total_tokens])].bfloat16()
    weights = [torch.randn(8, 20).bfloat16(), torch.randn(8).bfloat16()] * 2
    with no_host_waits():
        vk.select_tokens(tokens, *weights, plan)
    with counted() as traffic:
        kept, indices, scores, *_ = vk.select_tokens(tokens, *weights, plan)
    assert traffic.launches == 6
    with use_backend(CPU):
        assert torch.equal(indices, vk.topk_indices(scores, plan))
        near = vk.importance_scores(tokens, *weights, plan)
    torch.testing.assert_close(scores, near, rtol=1e-4, atol=1e-4)
    assert torch.equal(kept, tokens[indices])
    again = vk.select_tokens(tokens, *weights, plan)
    assert torch.equal(again.indices, indices) and torch.equal(again.scores, scores)


def test_a_pool_of_invalid_tokens_keeps_its_first() -> None:
    plan = SelectionPlan([40, 30], [4, 3])
    tokens, weight, bias = torch.randn(70, 8), torch.randn(4, 8), torch.randn(4)
    tokens[7] = math.nan
    kept, indices, scores, *_ = vk.select_tokens(tokens, weight, bias, weight, bias, plan)
    assert scores[:40].isnan().all() and not scores[40:].isnan().any()
    assert indices[:4].tolist() == [0, 1, 2, 3]
    assert torch.equal(indices, reference.topk_indices(scores, plan)) and torch.equal(kept[4:], tokens[indices[4:]])
