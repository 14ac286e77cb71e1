"""An engine of vLLM with the plugin switched on, and its answers."""

from pathlib import Path
from typing import Any

import torch
from requests_and_truth import NEW_TOKENS, Answer
from vllm import LLM, SamplingParams


def greedy(new_tokens: int = NEW_TOKENS) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, logprobs=0)


def engine(model: Path, selector: Path, **options: Any) -> LLM:
    return LLM(
        model=str(model),
        enforce_eager=True,
        max_num_seqs=16,
        limit_mm_per_prompt={"image": 4, "video": 2},
        additional_config={"vs_kernels": {"selector": str(selector), "budget": 0.2}},
        **({"dtype": "float32", "max_model_len": 2048, "max_num_batched_tokens": 2048} | options),
    )


def answers(llm: LLM, *requests: dict[str, Any], new_tokens: int = NEW_TOKENS) -> list[Answer]:
    outputs = llm.generate(list(requests), greedy(new_tokens), use_tqdm=False)
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
