"""Operators under pytest-benchmark: ``pytest bench --benchmark-only``."""

import functools

import pytest
import torch

import vs_kernels
from bench.providers import Missing, operators
from vs_kernels import SelectionPlan, reference
from vs_kernels.verify import Inputs

WIDTH, HIDDEN, TOKENS = 2048, 1024, 1024  # one image of 896 x 896 pixels, Qwen2.5-VL-3B
OPERATORS = operators(compiled=False)
PROVIDERS = [(name, who) for name, operator in OPERATORS.items() for who in ("vs_kernels", *operator.others)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def inputs(request) -> Inputs:
    plan = SelectionPlan.from_budget([TOKENS], 0.2)
    return Inputs.random(plan, WIDTH, HIDDEN, torch.float32, request.param)


@pytest.mark.parametrize(("name", "provider"), PROVIDERS)
def test_forward(benchmark, inputs, name, provider):
    _run(benchmark, inputs, name, provider, backward=False)


@pytest.mark.parametrize(("name", "provider"), [(n, p) for n, p in PROVIDERS if OPERATORS[n].leaves])
def test_forward_and_backward(benchmark, inputs, name, provider):
    _run(benchmark, inputs, name, provider, backward=True)


def _run(benchmark, inputs: Inputs, name: str, provider: str, backward: bool) -> None:
    operator = OPERATORS[name]
    benchmark.group = f"{name}, {'forward and backward' if backward else 'forward'}, {inputs.tokens.device.type}"
    x = inputs.leaves() if backward else inputs
    kept = reference.topk_indices(inputs.scores, inputs.plan)
    by_name = x.differentiable()
    for leaf_name, leaf in by_name.items():
        leaf.requires_grad_(backward and leaf_name in operator.leaves)

    forward = operator.others.get(provider) or functools.partial(operator.ours, vs_kernels)

    def call() -> None:
        outputs = forward(x, kept)
        if backward:
            torch.autograd.grad([output.sum() for output in outputs], [by_name[leaf] for leaf in operator.leaves])
        if inputs.tokens.device.type == "cuda":
            torch.cuda.synchronize()

    try:
        call()
    except Missing as reason:
        pytest.skip(str(reason))
    benchmark(call)
