"""VisionTokenSelector.capture: what can be seen without a GPU, errors and what a call does with a recorded graph."""

import pytest
import torch

from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.capture import CapturedSelection


class Graph:
    """A recorded graph: a replay works on the same buffers with the values that they have then."""

    def __init__(self, captured: CapturedSelection):
        self.captured = captured

    def replay(self) -> None:
        for buffer, value in zip(self.captured._selection[:3], self.captured._select()[:3], strict=True):
            buffer.copy_(value)


@pytest.fixture
def selector() -> VisionTokenSelector:
    selector = VisionTokenSelector(ImportanceScorer(16), budget=0.25).eval()
    torch.nn.init.normal_(selector.scorer.q_proj.weight)
    torch.nn.init.normal_(selector.scorer.k_proj.weight)
    return selector


@pytest.fixture
def captured(selector: VisionTokenSelector) -> CapturedSelection:
    """What the constructor leaves behind on a GPU, for images of 8 and 12 tokens."""
    captured = object.__new__(CapturedSelection)
    captured.plan = selector.plan([8, 12])
    captured._selector, captured._lengths, captured._budget = selector, [8, 12], None
    captured._tokens = torch.zeros(20, 16)
    captured._selection = captured._select()
    captured._graph = Graph(captured)
    return captured


def test_a_graph_needs_cuda(selector: VisionTokenSelector) -> None:
    with pytest.raises(ValueError, match="selector: got one on cpu, expected a CUDA device"):
        selector.capture([8])


def test_a_replay_selects_among_the_tokens_of_the_call(
    selector: VisionTokenSelector, captured: CapturedSelection
) -> None:
    first, second = torch.randn(20, 16), torch.randn(20, 16)
    for tokens in (first, second):
        expected = selector(tokens, [8, 12])
        result = captured(tokens)
        assert torch.equal(result.tokens, expected.tokens)
        assert torch.equal(result.indices, expected.indices)
    assert captured(first) is captured(second)  # the same buffers


def test_other_shapes_are_selected_without_the_graph_and_say_so(captured: CapturedSelection) -> None:
    captured._graph = None
    with pytest.warns(RuntimeWarning, match=r"captured for tokens \[20, 16\] of torch.float32 on cpu, got \[9, 16\]"):
        assert captured(torch.randn(9, 16)).plan.ks == (2,)
    with pytest.warns(RuntimeWarning, match="of torch.bfloat16 on cpu: selecting without the graph"):
        assert captured(torch.randn(20, 16).bfloat16()).plan.ks == (2, 3)
