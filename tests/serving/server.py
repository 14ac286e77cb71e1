"""The real server of vLLM on the loopback, with the plugin, and requests to it."""

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

START_LIMIT = 300


@contextlib.contextmanager
def serve(model: Path, log: Path, *options: str) -> Iterator[str]:
    """Runs the server and yields its address; afterwards the server is gone with all its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that command looks for a package of the name vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--enforce-eager", *options]
    # Without the one-process mode of the other tests, as a server runs.
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    limit = time.monotonic() + START_LIMIT
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-5000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/health").status_code == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(f"the server did not start in {START_LIMIT} s:\n{log.read_text()[-5000:]}")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def chat(text: str, *images: bytes, **options: Any) -> dict[str, Any]:
    """The body of a request with images ahead of a text."""
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in images]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": text}]
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "return_token_ids": True,
        **options,
    }


def extra(selector: str, budget: float) -> str:
    return json.dumps({"vs_kernels": {"selector": selector, "budget": budget}})
