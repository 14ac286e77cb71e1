"""Every operator test runs on each backend."""

from collections.abc import Iterator

import pytest
import torch
from backends import BACKENDS, HAS_TRITON, use_backend


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
