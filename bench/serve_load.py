"""Load on a server: so many clients, each of which sends its next request when it has its answer."""

import base64
import io
import json
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from PIL import Image

from bench.serve_server import NAME

ANSWER_LIMIT = 600
PLAIN = "all tokens"  # what requests without selection are called
QUESTION = "What is in this picture, and where?"


class Reply(NamedTuple):
    """One answer.

    Attributes:
        first_token_s, total_s: seconds from the request to its first token and to its last.
        prompt_tokens, new_tokens: as the server counts them; together the tokens in its KV cache.
    """

    first_token_s: float
    total_s: float
    prompt_tokens: int
    new_tokens: int


class Load(NamedTuple):
    """One run of requests.

    Attributes:
        seconds: from the first request to the last answer.
        replies: in the order of the requests.
    """

    seconds: float
    replies: list[Reply]

    @property
    def requests_per_second(self) -> float:
        return len(self.replies) / self.seconds

    def percentile(self, percent: int, of: str) -> float:
        """A percentile of ``first_token_s`` or ``total_s``, interpolated between the answers."""
        values = [getattr(reply, of) for reply in self.replies]
        if len(values) == 1:
            return values[0]
        return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]

    @property
    def kv_tokens(self) -> float:
        """Tokens in the KV cache per request."""
        return statistics.mean(reply.prompt_tokens + reply.new_tokens for reply in self.replies)


def by_case(records: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[Load]]:
    """The rounds of every server and number of clients, from what the suite has written down."""
    loads: dict[tuple[str, int], list[Load]] = {}
    for record in records:
        if record["record"] == "load":
            replies = [Reply(**reply) for reply in record["replies"]]
            loads.setdefault((record["server"], record["concurrency"]), []).append(Load(record["seconds"], replies))
    return loads


def body(photo: Image.Image, new_tokens: int, budget: float | None) -> dict[str, Any]:
    """The body of a request about a photo; ``budget`` None: of all its visual tokens."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        **({} if budget is None else {"mm_processor_kwargs": {"budget": budget}}),
    }


def run(address: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> Load:
    """Send all requests from ``concurrency`` clients.

    Raises:
        OSError: the server refused one, or is gone.
    """
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        replies = list(pool.map(lambda one: _ask(address, one), bodies))
        return Load(time.perf_counter() - started, replies)


def _ask(address: str, body: dict[str, Any]) -> Reply:
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started, first, usage = time.perf_counter(), None, {}
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if first is None and any(choice.get("token_ids") for choice in event["choices"]):
                    first = time.perf_counter() - started
                usage = event.get("usage") or usage
    except urllib.error.HTTPError as error:
        raise OSError(f"the server answered {error.code}: {error.read().decode()}") from error
    total = time.perf_counter() - started
    if first is None:
        raise OSError("the server answered without tokens")
    return Reply(first, total, usage["prompt_tokens"], usage["completion_tokens"])
