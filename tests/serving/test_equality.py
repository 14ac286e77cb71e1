"""vLLM answers as transformers with an attached selector does: the same tokens with the same log-probabilities."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import answers, assert_same, engine
from requests_and_truth import REQUESTS, Request, Truth
from vllm import LLM

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
BUDGETS = (1.0, 0.5, 0.2)


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[tuple[LLM, Truth]]:
    folder, selector = models[request.param], models["selector"]
    llm = engine(folder, selector, enable_prefix_caching=False)
    yield llm, Truth(folder, selector)
    del llm
    gc.collect()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_same_answer(served: tuple[LLM, Truth], request_: Request, budget: float) -> None:
    llm, truth = served
    (got,) = answers(llm, request_.for_vllm(budget))
    assert_same(got, truth.answer(request_, budget))
