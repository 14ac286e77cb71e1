"""The same answers in chunks, from caches, in company, and after an interruption."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import answers, assert_same, engine, greedy
from requests_and_truth import IMAGE, REQUESTS, VIDEO, Request, Truth, image, video
from vllm import LLM

BLOCK = 32
CHUNK = 40


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def served(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[tuple[LLM, Truth]]:
    """An engine that reads prompts in chunks shorter than an image, and caches prefixes."""
    folder, selector = models[request.param], models["selector"]
    llm = engine(
        folder,
        selector,
        max_model_len=512,
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=True,
        block_size=BLOCK,
        disable_log_stats=False,
        # So few that 16 requests do not fit, and some are interrupted.
        num_gpu_blocks_override=18,
    )
    yield llm, Truth(folder, selector)
    del llm
    gc.collect()


@pytest.fixture(autouse=True)
def empty_caches(served: tuple[LLM, Truth]) -> None:
    assert served[0].reset_prefix_cache()


def cached_tokens(llm: LLM, request: Request, budget: float = 0.5) -> int:
    (output,) = llm.generate([request.for_vllm(budget)], greedy(), use_tqdm=False)
    return output.num_cached_tokens


@pytest.mark.parametrize(("name", "budget"), [("two images", 1.0), ("video", 0.5), ("mixed", 0.5)])
def test_chunks_shorter_than_an_image(served: tuple[LLM, Truth], name: str, budget: float) -> None:
    llm, truth = served
    (got,) = answers(llm, REQUESTS[name].for_vllm(budget))
    assert got.prompt_length > 2 * CHUNK
    assert_same(got, truth.answer(REQUESTS[name], budget))


@pytest.mark.parametrize("name", ["image", "two images", "mixed"])
def test_a_prefix_from_the_cache_gives_the_same_answer(served: tuple[LLM, Truth], name: str) -> None:
    llm, truth = served
    request = REQUESTS[name]
    (first,) = answers(llm, request.for_vllm(0.5))
    assert cached_tokens(llm, request) >= first.prompt_length - BLOCK
    (again,) = answers(llm, request.for_vllm(0.5))
    assert_same(again, truth.answer(request, 0.5))
    assert_same(first, again)


@pytest.mark.parametrize("item", [image(336, 448), video(8, 112, 140)], ids=["image", "video"])
def test_another_question_about_a_cached_image(served: tuple[LLM, Truth], item: object) -> None:
    llm, truth = served
    asked, text = [], f"{IMAGE if not isinstance(item, tuple) else VIDEO}"
    for question in ("what?", "a rather different question, which is longer than a block of the cache"):
        given = ((), (item,)) if isinstance(item, tuple) else ((item,), ())
        asked.append(Request(f"{text} {question}", *given))
    answers(llm, asked[0].for_vllm(0.5))
    assert cached_tokens(llm, asked[1]) > BLOCK
    assert llm.reset_prefix_cache()
    answers(llm, asked[0].for_vllm(0.5))
    (got,) = answers(llm, asked[1].for_vllm(0.5))
    assert_same(got, truth.answer(asked[1], 0.5))


def test_every_turn_of_a_chat(served: tuple[LLM, Truth]) -> None:
    llm, truth = served
    text, images = "", ()
    for turn, picture in enumerate([image(252, 336), None, image(196, 140), None]):
        text += f"turn {turn}: {IMAGE if picture else ''} and now?"
        images = (*images, picture) if picture else images
        request = Request(text, images)
        if turn:
            assert cached_tokens(llm, request) > 0
        (got,) = answers(llm, request.for_vllm(0.5))
        assert_same(got, truth.answer(request, 0.5))
        text += " some answer. "


def test_neither_another_image_nor_another_budget_shares_an_entry(served: tuple[LLM, Truth]) -> None:
    llm, truth = served
    text = f"a text ahead, longer than a block: {IMAGE} what is it?"
    first, second = (Request(text, (image(224, 224, seed),)) for seed in (1, 2))
    ahead = text.index(IMAGE) + 1
    answers(llm, first.for_vllm(0.5))
    for request, budget in ((second, 0.5), (first, 0.2), (first, 0.51)):
        assert cached_tokens(llm, request, budget) <= ahead
        (got,) = answers(llm, request.for_vllm(budget))
        assert_same(got, truth.answer(request, budget))
    # The entries are still there, each under its own image and budget.
    assert cached_tokens(llm, first, 0.5) > ahead


def test_sixteen_at_once_answer_as_one_by_one(served: tuple[LLM, Truth]) -> None:
    llm, _ = served
    requests = []
    for number in range(16):
        pictures = tuple(image(168 + 28 * (number % 5), 196 + 28 * (number % 3), number + part) for part in range(2))
        films = (video(4, 84, 112, number),) if number % 4 == 0 else ()
        text = f"{number}: {IMAGE} then {IMAGE} and {VIDEO if films else 'nothing'}?"
        requests.append(Request(text, pictures, films).for_vllm((0.2, 0.5, 0.8)[number % 3]))
    before = preemptions(llm)
    together = answers(llm, *requests, new_tokens=40)
    assert preemptions(llm) > before
    assert llm.reset_prefix_cache()
    for got, request in zip(together, requests, strict=True):
        assert_same(got, answers(llm, request, new_tokens=40)[0])


def preemptions(llm: LLM) -> int:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
