import math
import os
import subprocess
import sys

import pytest
import torch

import vs_kernels as vk
from vs_kernels import SelectionPlan, library, reference


def scorer_weights(width: int, hidden: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(hidden, width) / math.sqrt(width),
        torch.randn(hidden),
        torch.randn(hidden, width) / math.sqrt(width),
        torch.randn(hidden),
    )


def test_the_collapse_is_the_definition() -> None:
    plan = SelectionPlan([150, 1, 0, 349], [10, 1, 0, 30])
    tokens = torch.randn(500, 40, dtype=torch.float64)
    weights = [weight.double() for weight in scorer_weights(40, 20)]
    collapsed = reference.importance_scores_collapsed(tokens, *weights, plan)[0]
    torch.testing.assert_close(collapsed, reference.importance_scores(tokens, *weights, plan), rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def long_video() -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """Tokens and weights with N = 16,384, D = 3,584, h = 1,792; some rows; their scores by the N x N definition in
    float64."""
    torch.manual_seed(0)
    n, width, hidden = 16384, 3584, 1792
    tokens, weights = torch.randn(n, width), scorer_weights(width, hidden)
    q_weight, q_bias, k_weight, k_bias = (weight.double() for weight in weights)
    keys = torch.cat([chunk.double() @ k_weight.T + k_bias for chunk in tokens.split(4096)])
    rows = torch.randperm(n)[:200]
    queries = tokens[rows].double() @ q_weight.T + q_bias
    return tokens, weights, rows, (queries @ keys.T).mean(dim=1) / math.sqrt(hidden)


def test_long_video_against_the_definition(backend: str, long_video) -> None:
    tokens, weights, rows, truth = long_video
    scores = vk.importance_scores(tokens, *weights)
    assert (scores[rows] - truth).abs().max() <= 1e-6 * truth.abs().max()


PEAK = """
import contextlib
from pathlib import Path

import torch
import vs_kernels as vk

def kibibytes(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

tokens = torch.randn(16384, 3584)
weights = vk.ImportanceScorer(3584).weights()
with torch.no_grad(), {kernels}:
    vk.importance_scores(tokens[:8], *weights)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kibibytes("VmRSS")
    vk.importance_scores(tokens, *weights)
print(kibibytes("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("kernels", "mebibytes"),
    [("contextlib.nullcontext()", 4), ("vk.library.plain_kernels()", 32)],
    ids=["as built", "PyTorch"],
)
def test_memory_beyond_the_tokens_is_small(kernels: str, mebibytes: int) -> None:
    """Of 16,384 tokens an N x N matrix takes 1 GiB, [N, h] 112 MiB, the scores 64 KiB. PyTorch kernels take 1,024 rows
    at a time, 14 MiB."""
    if kernels == "contextlib.nullcontext()" and library.CPU_PROBLEM is not None:
        pytest.skip("bounds of the C++ kernels")
    # so that what is freed is no longer there
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", PEAK.format(kernels=kernels)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 0 < int(run.stdout) <= mebibytes * 1024


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("length", [10, 300, 5000])
def test_query_bias_gets_exactly_no_gradient_through_soft_topk(backend: str, length: int, temperature: float) -> None:
    """Its term is the same for all tokens of a pool, and the threshold takes it up."""
    scorer = vk.ImportanceScorer(64)
    torch.nn.init.normal_(scorer.q_proj.weight, std=0.1)
    torch.nn.init.normal_(scorer.k_proj.weight, std=0.1)
    plan = SelectionPlan.from_budget([length, 80], 0.2)
    probs, _ = vk.soft_topk(scorer(torch.randn(length + 80, 64), plan), plan, temperature)
    (probs.square().sum() + vk.topk_consistency_loss(scorer(torch.randn(length + 80, 64), plan), plan)).backward()
    assert scorer.q_proj.weight.grad.abs().max() > 0
    assert torch.equal(scorer.q_proj.bias.grad, torch.zeros(32))


@pytest.mark.interpreted
def test_query_bias_gets_the_sum_of_other_gradients(backend: str) -> None:
    tokens, (q_weight, q_bias, k_weight, k_bias) = torch.randn(200, 16), scorer_weights(16, 8)
    q_bias.requires_grad_()
    vk.importance_scores(tokens, q_weight, q_bias, k_weight, k_bias).sum().backward()
    key = k_weight @ tokens.mean(dim=0) + k_bias
    torch.testing.assert_close(q_bias.grad, 200 * key / math.sqrt(8))


@pytest.mark.interpreted
def test_query_bias_gets_a_small_sum_of_large_gradients(backend: str) -> None:
    """What is taken for zero is the rounding of the gradients, not whatever is small beside them."""
    tokens, (q_weight, q_bias, k_weight, k_bias) = torch.randn(200, 16), scorer_weights(16, 8)
    q_bias.requires_grad_()
    grad = torch.tensor([1.0, -1.0]).repeat(100) + 2.0**-16
    vk.importance_scores(tokens, q_weight, q_bias, k_weight, k_bias).backward(grad)
    key = k_weight @ tokens.mean(dim=0) + k_bias
    torch.testing.assert_close(q_bias.grad, 200 * 2.0**-16 * key / math.sqrt(8))


@pytest.mark.interpreted
def test_only_wanted_gradients_are_made(backend: str) -> None:
    tokens, weights = torch.randn(30, 16), scorer_weights(16, 8)
    weights[2].requires_grad_()
    vk.importance_scores(tokens, *weights).sum().backward()
    assert weights[2].grad is not None
    assert all(tensor.grad is None for tensor in (tokens, weights[0], weights[1], weights[3]))


@pytest.mark.interpreted
def test_fresh_scores_are_tiny_but_not_lost(backend: str) -> None:
    scores = vk.ImportanceScorer(256)(torch.randn(100, 256).bfloat16())
    assert scores.dtype == torch.float32
    assert 0 < scores.abs().max() < 1e-3
    assert scores.unique().numel() == 100


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.randn(9, 8, dtype=torch.float64)}, TypeError, "tokens: got torch.float64"),
        ({"tokens": [1.0]}, TypeError, "tokens: got list, expected a torch.Tensor"),
        ({"tokens": torch.randn(9)}, ValueError, r"tokens: got shape \(9,\)"),
        ({"tokens": torch.randn(8, 9).T}, ValueError, "tokens: got a last stride of 9, expected contiguous rows"),
        ({"tokens": torch.randn(8, 8)}, ValueError, "tokens: got 8 rows, expected 9, the plan's total_tokens"),
        ({"tokens": torch.randn(3, 3, 8)}, ValueError, r"tokens: got shape \(3, 3, 8\), expected a plan of 3 pools"),
        ({"q_weight": torch.randn(4, 7)}, ValueError, r"q_weight: got shape \(4, 7\), expected \[h > 0, 8\]"),
        ({"k_weight": torch.randn(5, 8)}, ValueError, r"k_weight: got shape \(5, 8\), expected \[4, 8\]"),
        ({"q_bias": torch.randn(5)}, ValueError, r"q_bias: got shape \(5,\), expected \[4\]"),
        ({"k_bias": torch.randn(4).double()}, TypeError, "k_bias: got torch.float64"),
        ({"k_bias": None}, TypeError, "k_bias: got NoneType"),
        ({"k_bias": torch.randn(4, device="meta")}, ValueError, "k_bias: got a tensor on meta, expected cpu"),
        ({"plan": [9]}, TypeError, "plan: got list, expected a SelectionPlan"),
    ],
)
def test_errors(change: dict, error: type, message: str) -> None:
    arguments = {
        "tokens": torch.randn(9, 8),
        "q_weight": torch.randn(4, 8),
        "q_bias": torch.randn(4),
        "k_weight": torch.randn(4, 8),
        "k_bias": torch.randn(4),
        "plan": SelectionPlan([9], [2]),
    }
    with pytest.raises(error, match=message):
        vk.importance_scores(**arguments | change)
