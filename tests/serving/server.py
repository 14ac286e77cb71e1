"""Requests to a server."""

import base64
import io
import json
from typing import Any

from PIL import Image

from bench.serve_server import NAME


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def chat(text: str, *images: bytes, **options: Any) -> dict[str, Any]:
    """The body of a request with images ahead of a text."""
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in images]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": text}]
    return {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "return_token_ids": True,
        **options,
    }


def extra(selector: str, budget: float) -> str:
    return json.dumps({"vs_kernels": {"selector": selector, "budget": budget}})
