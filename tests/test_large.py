"""The memory that select_tokens takes, and tokens of more than 2^31 entries."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import vs_kernels as vk
from vs_kernels import SelectionPlan, library, verify

pytestmark = pytest.mark.skipif(library.CPU_PROBLEM is not None, reason="bounds and speed of the C++ kernels")

MEMORY = """
from pathlib import Path

import torch
import vs_kernels as vk

def kibibytes(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

count, width, hidden, block = 262_144, 3584, 1792, 4096
tokens = torch.empty(count, width, dtype=torch.bfloat16)
for rows in tokens.split(block):
    rows.copy_(torch.randn(1, width) + torch.randn(block, 1))
weights = [weight.detach() for weight in vk.ImportanceScorer(width, hidden).bfloat16().weights()]
plan = vk.SelectionPlan.from_budget([count], 0.2)
before = kibibytes("VmRSS")
selection = vk.select_tokens(tokens, *weights, plan)
# of this process alone: what getrusage tells begins with that of the parent
peak = kibibytes("VmHWM")
print((peak - before) * 1024 - sum(x.nbytes for x in (selection.tokens, selection.indices, selection.scores)))
"""


def test_select_tokens_takes_the_memory_of_its_results() -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 64 * 2**20


WIDTH, HIDDEN, TAIL = 3584, 4, 1000
ROWS = 2**31 // WIDTH + 3 * TAIL
SCALE = 0.5
# The last pool, and the last rows of the one before, lie beyond 2^31 entries.
PLAN = SelectionPlan([ROWS - TAIL, TAIL], [7, 50])
# As many pools, because two pools share loops that round differently from those of one.
LAST = SelectionPlan([0, TAIL], [0, 50])


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Zeros, which the system maps without memory of their own, and at the end two blocks of random rows."""
    zeros = torch.from_numpy(np.zeros((ROWS, WIDTH), np.int16)).view(torch.bfloat16)
    zeros[-2 * TAIL :] = torch.randn(2 * TAIL, WIDTH)
    return zeros


@pytest.fixture(scope="module")
def weights() -> list[torch.Tensor]:
    return list(verify.Inputs.random(LAST, WIDTH, HIDDEN, torch.bfloat16).weights)


def test_importance_scores(tokens: torch.Tensor, weights: list[torch.Tensor]) -> None:
    scores = vk.importance_scores(tokens, *weights, PLAN)
    assert torch.equal(scores[-TAIL:], vk.importance_scores(tokens[-TAIL:].clone(), *weights, LAST))
    q_weight, q_bias, k_weight, k_bias = (weight.double() for weight in weights)
    block = tokens[-2 * TAIL : -TAIL].double()
    key = k_weight @ block.sum(0) / (ROWS - TAIL) + k_bias
    truth = (block @ (q_weight.T @ key) + q_bias @ key) / HIDDEN**0.5
    torch.testing.assert_close(scores[-2 * TAIL : -TAIL].double(), truth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[: -2 * TAIL].unique().double(), (q_bias @ key / HIDDEN**0.5)[None])


def test_importance_scores_backward(tokens: torch.Tensor, weights: list[torch.Tensor]) -> None:
    def grad_of_tokens(x: torch.Tensor, plan: SelectionPlan) -> torch.Tensor:
        x = x.detach().requires_grad_()
        scores = vk.importance_scores(x, *weights, plan)
        return torch.autograd.grad(scores[-TAIL:].square().sum(), x)[0][-TAIL:]

    assert torch.equal(grad_of_tokens(tokens, PLAN), grad_of_tokens(tokens[-TAIL:].clone(), LAST))


def test_select_tokens(tokens: torch.Tensor, weights: list[torch.Tensor]) -> None:
    selection = vk.select_tokens(tokens, *weights, PLAN)
    last = vk.select_tokens(tokens[-TAIL:].clone(), *weights, LAST)
    assert torch.equal(selection.indices[-50:], last.indices + ROWS - TAIL)
    assert torch.equal(selection.tokens, tokens[selection.indices])


def test_gather_tokens_and_backward(tokens: torch.Tensor) -> None:
    indices = torch.tensor([0, 5, 2**31 // WIDTH, ROWS - TAIL - 3, ROWS - 2, ROWS - 1])
    x = tokens.detach().requires_grad_()
    kept = vk.gather_tokens(x, indices)
    assert torch.equal(kept, tokens[indices])
    grad_kept = torch.randn_like(kept)
    (grad,) = torch.autograd.grad(kept, x, grad_kept)
    assert torch.equal(grad[indices], grad_kept)
    assert grad[-2 * TAIL :].count_nonzero(dim=1).count_nonzero() == 3


def test_straight_through_gather_and_backward(tokens: torch.Tensor) -> None:
    scores = torch.randn(ROWS)
    grad_kept = torch.randn(57, WIDTH).bfloat16()

    def run(x: torch.Tensor, s: torch.Tensor, plan: SelectionPlan) -> tuple[torch.Tensor, ...]:
        x, s = x.detach().requires_grad_(), s.clone().requires_grad_()
        kept, indices = vk.straight_through_gather(x, s, plan, scale=SCALE)
        return kept.detach(), indices, *torch.autograd.grad(kept, (x, s), grad_kept[-kept.shape[0] :])

    kept, indices, grad_tokens, grad_scores = run(tokens, scores, PLAN)
    assert torch.equal(kept, SCALE * tokens[indices])
    assert torch.equal(grad_tokens[indices], SCALE * grad_kept)
    last_kept, last_indices, last_grad_tokens, last_grad_scores = run(tokens[-TAIL:].clone(), scores[-TAIL:], LAST)
    assert torch.equal(kept[-50:], last_kept)
    assert torch.equal(indices[-50:], last_indices + ROWS - TAIL)
    assert torch.equal(grad_tokens[-TAIL:], last_grad_tokens)
    assert torch.equal(grad_scores[-TAIL:], last_grad_scores)
