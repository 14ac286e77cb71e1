"""vLLM answers as transformers with an attached selector does: the same tokens with the same log-probabilities."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from requests_and_truth import NEW_TOKENS, REQUESTS, Answer, Request, Truth
from vllm import LLM, SamplingParams

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
BUDGETS = (1.0, 0.5, 0.2)
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)


def engine(model: Path, selector: Path, **options: Any) -> LLM:
    return LLM(
        model=str(model),
        max_model_len=2048,
        enforce_eager=True,
        max_num_seqs=16,
        limit_mm_per_prompt={"image": 4, "video": 2},
        additional_config={"vs_kernels": {"selector": str(selector), "budget": 0.2}},
        **({"dtype": "float32", "max_num_batched_tokens": 2048} | options),
    )


def answers(llm: LLM, *requests: dict[str, Any]) -> list[Answer]:
    outputs = llm.generate(list(requests), GREEDY, use_tqdm=False)
    return [
        Answer(
            list(output.outputs[0].token_ids),
            [
                choices[token].logprob
                for token, choices in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
            ],
            len(output.prompt_token_ids),
        )
        for output in outputs
    ]


def assert_same(got: Answer, expected: Answer) -> None:
    assert got.prompt_length == expected.prompt_length
    assert got.tokens == expected.tokens
    torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(expected.logprobs), rtol=0, atol=1e-5)


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
