"""Real photos through the OpenAI-compatible server; what is wrong in a request is said, and the server lives on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import skimage.data
import torch
from PIL import Image
from requests_and_truth import IMAGE, Answer, Request, Truth
from server import chat, extra, png

from bench.serve_server import serve
from vs_kernels.integrations.vllm.settings import SETTING

PHOTOS = {
    name: Image.fromarray(getattr(skimage.data, name)()).resize(size)
    for name, size in {"astronaut": (448, 448), "coffee": (420, 280), "chelsea": (451, 300)}.items()
}


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--dtype", "float32", "--max-model-len", "2048", "--max-num-batched-tokens", "256"]
    options += [
        "--limit-mm-per-prompt",
        '{"image": 2, "video": 0}',
        "--max-num-seqs",
        "16",
        "--trust-request-mm-kwargs",
    ]
    setting = extra(str(models["selector"]), 0.2)
    with (
        serve(models["qwen2_5_vl"], log, *options, "--additional-config", setting) as address,
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        yield client


def ask(server: httpx.Client, body: dict[str, Any]) -> Answer:
    response = server.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    reply = response.json()
    (choice,) = reply["choices"]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return Answer(choice["token_ids"], logprobs, reply["usage"]["prompt_tokens"])


def body(text: str, *names: str, **options: Any) -> dict[str, Any]:
    return chat(text, *(png(PHOTOS[name]) for name in names), ignore_eos=True, **options)


@pytest.mark.parametrize("budget", [None, 1.0, 0.5])
@pytest.mark.parametrize("names", [("astronaut",), ("coffee", "chelsea"), ()])
def test_photos(server: httpx.Client, models: dict[str, Path], names: tuple[str, ...], budget: float | None) -> None:
    options = {"mm_processor_kwargs": {"budget": budget}} if budget and names else {}
    got = ask(server, body("what is it?", *names, **options))
    text = f"<|im_start|>user\n{IMAGE * len(names)}what is it?<|im_end|>\n<|im_start|>assistant\n"
    truth = Truth(models["qwen2_5_vl"], models["selector"])
    expected = truth.answer(Request(text, tuple(PHOTOS[name] for name in names)), budget or 0.2)
    assert got.prompt_length == expected.prompt_length
    assert got.tokens == expected.tokens
    torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(expected.logprobs), rtol=0, atol=1e-5)


def test_sixteen_clients(server: httpx.Client) -> None:
    names = list(PHOTOS)
    bodies = [
        body(f"question {number}", *names[number % 3 :][: 1 + number % 2], cache_salt=f"together {number}")
        for number in range(16)
    ]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda one: ask(server, one), bodies))
    for number, (got, one) in enumerate(zip(together, bodies, strict=True)):
        alone = ask(server, one | {"cache_salt": f"alone {number}"})
        assert got.tokens == alone.tokens
        torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(alone.logprobs), rtol=0, atol=1e-5)


def _broken() -> bytes:
    return png(PHOTOS["coffee"])[:500]


WRONG = {
    "too many images": (lambda: body("?", "astronaut", "coffee", "chelsea"), "At most 2 image(s)"),
    "broken image": (lambda: chat("?", _broken()), "image"),
    "no image at all": (lambda: chat("?", b"words"), "image"),
    "image of no size": (lambda: chat("?", b""), "image"),
    "budget of zero": (lambda: body("?", "coffee", mm_processor_kwargs={"budget": 0}), "budget: got 0, expected"),
    "budget in words": (lambda: body("?", "coffee", mm_processor_kwargs={"budget": "all"}), "budget: got str"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_answered_in_words(server: httpx.Client, make: Any, message: str) -> None:
    good = body("still there?", "coffee")
    before = ask(server, good)
    response = server.post("/v1/chat/completions", json=make())
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert server.get("/health").status_code == 200
    assert ask(server, good).tokens == before.tokens


def test_a_wrong_setting_ends_the_start(models: dict[str, Path], tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=f"{SETTING}.budget: got 2.0, expected a number in"),
        serve(models["qwen2_5_vl"], tmp_path / "log", "--additional-config", extra("uniform_grid", 2.0)),
    ):
        pass
