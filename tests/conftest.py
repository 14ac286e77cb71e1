"""Every operator test runs on each backend; tiny models that several files test."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from backends import BACKENDS, HAS_TRITON, use_backend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vs_kernels.integrations.transformers import SelectorHandle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every operator test in Triton's interpreter: takes an hour")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: small enough for Triton's interpreter in every run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        small = metafunc.definition.get_closest_marker("interpreted") or metafunc.config.getoption("all")
        backends = [*BACKENDS, "triton"] if HAS_TRITON and small else BACKENDS
        metafunc.parametrize("backend", backends, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """ "pytorch": the kernels in plain PyTorch; "triton": in the interpreter; else the C++ kernels of one
    instruction set."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than tiny models do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# transformers is imported where it is needed: operator tests do without.
@pytest.fixture
def model() -> "PreTrainedModel":
    from tiny_models import qwen2_5_vl

    return qwen2_5_vl()


@pytest.fixture
def attached(model: "PreTrainedModel") -> "Iterator[SelectorHandle]":
    from oracle import make_selector

    from vs_kernels.integrations.transformers import attach_selector

    with attach_selector(model, make_selector(), budget=0.5) as handle:
        yield handle
