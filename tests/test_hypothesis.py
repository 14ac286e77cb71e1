"""Random sizes, values and layouts: every operator against its definition in float64, forward and gradients."""

import math
from unittest import mock

import pytest
import torch
from backends import BACKENDS, use_backend
from hypothesis import given, settings
from hypothesis import strategies as st

import vs_kernels as vk
from vs_kernels import SelectionPlan, reference, verify

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -3.4e38])
TAKES_SCORES = verify.CALLS.keys() - {"importance_scores", "select_tokens"}
# Where all probabilities of a pool are saturated, any threshold in a wide range solves its equation to float64.
UNDETERMINED = {
    (name, result) for name in ("soft_topk", "soft_topk_with_loss") for result in ("output 1", "grad of scores")
}
SATURATED = 1e-5  # absolute error of what is zero in truth, and in practice

# Derandomized: every run tries the same examples, so that a failure is a change of the code.
few_examples = settings(max_examples=30, derandomize=True, database=None, deadline=None)
every_backend = pytest.mark.parametrize("backend_name", BACKENDS)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small leave further threads waiting for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def plans(draw: st.DrawFn) -> SelectionPlan:
    lengths = draw(st.lists(st.integers(0, 9) | st.integers(10, 300) | st.integers(505, 600), min_size=1, max_size=5))
    shares = [draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1)) for _ in lengths]
    return SelectionPlan(lengths, [round(share * length) for share, length in zip(shares, lengths, strict=True)])


def score_values(kind: str, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, generator=generator)
    if kind == "tied":
        return normal.round()
    if kind == "special":
        chosen = torch.randint(3 * len(SPECIAL), (count,), generator=generator)
        return torch.where(chosen < len(SPECIAL), SPECIAL[chosen % len(SPECIAL)], normal)
    return {"normal": normal, "equal": torch.full((count,), 0.3), "far": normal * 1e4, "close": 1 + normal * 1e-5}[kind]


def strided(matrix: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values, rows further apart in memory than they are wide."""
    rows, columns = matrix.shape
    gap = {"packed": 0, "odd": 3, "wide": 64}[layout]
    room = torch.full((rows, columns + gap), math.nan, dtype=matrix.dtype)
    room[:, gap // 2 : gap // 2 + columns] = matrix
    return room[:, gap // 2 : gap // 2 + columns]


layouts = st.sampled_from(["packed", "odd", "wide"])


@st.composite
def inputs(draw: st.DrawFn, kinds: tuple[str, ...]) -> verify.Inputs:
    plan = draw(plans())
    width, hidden = draw(st.integers(1, 40) | st.sampled_from([64, 257])), draw(st.integers(1, 20))
    x = verify.Inputs.random(plan, width, hidden, draw(st.sampled_from(DTYPES)), seed=draw(st.integers(0, 2**16)))
    x.scores = score_values(draw(st.sampled_from(kinds)), plan.total_tokens, draw(st.integers(0, 2**16)))
    x.tokens = strided(x.tokens, draw(layouts))
    return x


@every_backend
@pytest.mark.parametrize("name", verify.CALLS)
def test_agrees_with_float64(backend_name: str, name: str) -> None:
    @few_examples
    @given(inputs(("normal", "tied", "equal", "close")), st.sampled_from([0.5, 1.0, 4.0]))
    def check(x: verify.Inputs, temperature: float) -> None:
        with mock.patch.object(verify, "TEMPERATURE", temperature):
            for result, error, allowed in verify.errors(vk, name, x):
                assert error <= allowed, result

    with use_backend(backend_name):
        check()


@every_backend
@pytest.mark.parametrize("name", sorted(TAKES_SCORES))
def test_extreme_scores(backend_name: str, name: str) -> None:
    @few_examples
    @given(inputs(("special", "far")), st.sampled_from([0.01, 0.5, 4.0]))
    def check(x: verify.Inputs, temperature: float) -> None:
        with mock.patch.object(verify, "TEMPERATURE", temperature):
            for result, error, allowed in verify.errors(vk, name, x):
                if (name, result) in UNDETERMINED:
                    assert not verify.results(vk, name, x.leaves())[result].isnan().any(), result
                else:
                    assert error <= allowed + SATURATED, result

    with use_backend(backend_name):
        check()


@every_backend
def test_pools_do_not_mix(backend_name: str) -> None:
    """Infinite and NaN tokens of one pool leave the results of the others as they are, to the bit."""

    @few_examples
    @given(inputs(("normal",)), st.integers(0, 5), st.sampled_from([math.inf, -math.inf, math.nan]))
    def check(x: verify.Inputs, pool: int, value: float) -> None:
        pool = min(pool, x.plan.num_pools - 1)
        others = torch.ones(x.plan.total_tokens, dtype=torch.bool)
        tokens = x.tokens.clone()
        for i, (rows, _) in enumerate(reference.pools(x.plan)):
            if i == pool:
                others[rows], tokens[rows] = False, value
        scores = [vk.importance_scores(t, *x.weights, x.plan)[others] for t in (x.tokens, tokens)]
        assert torch.equal(*scores)
        kept, indices = [], vk.topk_indices(x.scores, x.plan)
        for t in (x.tokens, tokens):
            selection = vk.select_tokens(t, *x.weights, x.plan)
            kept.append(selection.indices[others[selection.indices]])
        assert torch.equal(*kept)
        assert torch.equal(vk.gather_tokens(tokens, indices).nan_to_num(), tokens[indices].nan_to_num())

    with use_backend(backend_name):
        check()
