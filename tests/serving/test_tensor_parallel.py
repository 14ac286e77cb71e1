"""Two processes that share the layers answer as one."""

from pathlib import Path

import pytest
from engine import answers, assert_same, engine
from requests_and_truth import REQUESTS, Truth


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_two_ranks(models: dict[str, Path], name: str) -> None:
    llm = engine(models[name], models["selector"], tensor_parallel_size=2, distributed_executor_backend="mp")
    truth = Truth(models[name], models["selector"])
    for request in (REQUESTS["two images"], REQUESTS["mixed"]):
        assert_same(answers(llm, request.for_vllm(0.5))[0], truth.answer(request, 0.5))
