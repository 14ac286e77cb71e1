"""What holds for every operator: truth, schemas, tracing, layouts, special sizes."""

import ctypes
import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vs_kernels as vk
from bench.heap import take_fresh_from
from vs_kernels import SelectionPlan, verify

PLANS = {
    "ragged": SelectionPlan([129, 1, 0, 64, 33], [26, 1, 0, 0, 33]),
    "one token": SelectionPlan([1], [1]),
    "k = 1": SelectionPlan([257, 31], [1, 1]),
    "k = N": SelectionPlan([40, 7], [40, 7]),
    "nothing kept": SelectionPlan([40, 7], [0, 0]),
    "many pools": SelectionPlan.from_budget(list(range(60)), 0.3),
    "beyond one chunk": SelectionPlan([2500, 1100], [500, 1000]),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dtypes_of(name: str) -> tuple[torch.dtype, ...]:
    return DTYPES if name in verify.TAKES_TOKENS else (torch.float32,)


CASES = [(name, dtype) for name in verify.CALLS for dtype in dtypes_of(name)]


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Fresh memory holds NaN, so that an entry no kernel wrote shows up."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_agrees_with_float64(backend: str, name: str, dtype: torch.dtype, plan: SelectionPlan) -> None:
    inputs = verify.Inputs.random(plan, width=72, hidden=36, dtype=dtype)
    for result, error, allowed in verify.errors(vk, name, inputs):
        assert error <= allowed, result


@pytest.mark.parametrize("width", [1, 3, 17, 257])
@pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case[0] in verify.TAKES_TOKENS])
def test_odd_widths(backend: str, name: str, dtype: torch.dtype, width: int) -> None:
    inputs = verify.Inputs.random(SelectionPlan([65, 10], [13, 2]), width, hidden=5, dtype=dtype)
    for result, error, allowed in verify.errors(vk, name, inputs):
        assert error <= allowed, result


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in sorted(verify.TAKES_TOKENS)), ("straight_through_gather", torch.bfloat16)],
)
def test_results_too_large_for_the_caches(backend: str, name: str, dtype: torch.dtype) -> None:
    """More than 16 MiB, which the C++ kernels write past the caches unless the memory is fresh from the system."""
    rows = 2150 * 4 // dtype.itemsize
    plan = SelectionPlan([rows + 300, 100], [rows, 50])
    inputs = verify.Inputs.random(plan, width=2080, hidden=8, dtype=dtype)
    for result, error, allowed in verify.errors(vk, name, inputs):
        assert error <= allowed, result
    torch.use_deterministic_algorithms(False)  # memory filled with NaN is not fresh any more
    take_fresh_from(2**20)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)  # what is free in the heap is fresh again
    fresh = verify.results(vk, name, inputs.leaves())
    take_fresh_from(2**28)
    torch.ones(60 * 2**18)  # leaves as many bytes in the heap that are not fresh
    again = verify.results(vk, name, inputs.leaves())
    assert all(torch.equal(again[result], value) for result, value in fresh.items())


@pytest.mark.interpreted
@pytest.mark.parametrize("name", verify.CALLS)
def test_no_pools_and_only_empty_pools(backend: str, name: str) -> None:
    for lengths in ([], [0], [0, 0, 0]):
        inputs = verify.Inputs.random(SelectionPlan(lengths, lengths), width=8, hidden=4, dtype=torch.float32).leaves()
        for result, value in verify.results(vk, name, inputs).items():
            if result.startswith("output") or result in ("grad of tokens", "grad of scores"):
                assert value.numel() == 0 or name in ("soft_topk", "soft_topk_with_loss", "topk_consistency_loss")
            assert not value.isnan().any(), result


@pytest.mark.interpreted
@pytest.mark.parametrize("name", sorted(verify.TAKES_TOKENS))
def test_rows_apart_in_memory(backend: str, name: str) -> None:
    inputs = verify.Inputs.random(SelectionPlan([50, 20], [10, 4]), width=24, hidden=12, dtype=torch.float32)
    apart = torch.full((70, 40), torch.nan)[:, 8:32]
    apart.copy_(inputs.tokens)
    expected = verify.results(vk, name, inputs.leaves())
    leaves = inputs.leaves()
    leaves.tokens = apart.requires_grad_()
    actual = verify.results(vk, name, leaves)
    for result, value in expected.items():
        torch.testing.assert_close(actual[result], value, rtol=1e-5, atol=1e-6)


@pytest.mark.interpreted
def test_dense_is_packed(backend: str) -> None:
    plan = SelectionPlan.dense(3, 20, k=6)
    tokens, scores = torch.randn(3, 20, 16), torch.randn(3, 20)
    weights = vk.ImportanceScorer(16, 8).weights()
    flat, flat_scores = tokens.flatten(0, 1), scores.flatten()
    assert torch.equal(vk.importance_scores(tokens, *weights), vk.importance_scores(flat, *weights, plan).view(3, 20))
    assert torch.equal(vk.topk_indices(scores, plan), vk.topk_indices(flat_scores, plan))
    assert torch.equal(vk.topk_mask(scores, plan), vk.topk_mask(flat_scores, plan).view(3, 20))
    assert torch.equal(vk.soft_topk(scores, plan)[0], vk.soft_topk(flat_scores, plan)[0].view(3, 20))
    assert torch.equal(vk.topk_consistency_loss(scores, plan), vk.topk_consistency_loss(flat_scores, plan))
    masked = vk.straight_through_mask(tokens, scores, plan)
    assert torch.equal(masked, vk.straight_through_mask(flat, flat_scores, plan).view(3, 20, 16))
    kept, indices = vk.straight_through_gather(tokens, scores, plan)
    assert torch.equal(kept, vk.gather_tokens(tokens, indices))
    assert vk.select_tokens(tokens, *weights, plan).scores.shape == (3, 20)


@pytest.mark.parametrize("name", verify.CALLS)
def test_runs_are_bit_identical_for_any_number_of_threads(backend: str, name: str) -> None:
    inputs = verify.Inputs.random(
        SelectionPlan([5000, 40, 300], [1000, 8, 300]), width=40, hidden=20, dtype=torch.float32
    )
    threads = torch.get_num_threads()
    counts = (threads, threads) if backend == "pytorch" else (1, 2, 3, 2)
    try:
        runs = []
        for count in counts:
            torch.set_num_threads(count)
            runs.append(verify.results(vk, name, inputs.leaves()))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for result, value in runs[0].items():
            assert torch.equal(run[result], value), result


def _bare_calls() -> dict[str, tuple]:
    """Arguments of every dispatcher operator."""
    plan = SelectionPlan([12, 0, 9], [4, 0, 9])
    x = verify.Inputs.random(plan, width=8, hidden=4, dtype=torch.float32)
    cu_lengths, cu_ks, k, n = plan.cu_lengths(), plan.cu_ks(), plan.total_kept, plan.max_length
    ops = torch.ops.vs_kernels
    indices, mask = ops.topk_indices(x.scores, cu_lengths, cu_ks, k, n), ops.topk_mask(x.scores, cu_lengths, cu_ks, n)
    _, _, pivots, shifts = ops.soft_topk(x.scores, cu_lengths, cu_ks, n, 0.5)
    parts = ops.importance_scores(x.tokens, *x.weights, cu_lengths)[1:]
    root = (pivots, shifts, cu_lengths, 0.5)
    return {
        "importance_scores": (x.tokens, *x.weights, cu_lengths),
        "importance_scores_backward": (
            x.scores,
            x.tokens,
            *x.weights[:3],
            *parts,
            cu_lengths,
            [True, False] * 2 + [True],
        ),
        "topk_indices": (x.scores, cu_lengths, cu_ks, k, n),
        "topk_mask": (x.scores, cu_lengths, cu_ks, n),
        "soft_topk": (x.scores, cu_lengths, cu_ks, n, 0.5),
        "soft_topk_backward": (x.scores, torch.randn(3), x.scores, *root),
        "soft_topk_with_loss": (x.scores, cu_lengths, cu_ks, n, 0.5),
        "soft_topk_with_loss_backward": (
            x.scores,
            torch.randn(3),
            torch.tensor(2.0),
            x.scores,
            pivots,
            shifts,
            torch.randn(21),
            cu_lengths,
            0.5,
        ),
        "topk_consistency_loss": (x.scores, cu_lengths, cu_ks, n, 0.5),
        "gather_tokens": (x.tokens, indices),
        "gather_tokens_with": (x.tokens, indices, torch.arange(42).view(2, 21), mask),
        "gather_tokens_backward": (torch.randn(k, 8), indices, 21),
        "straight_through_gather": (x.tokens, x.scores, None, cu_lengths, cu_ks, k, n, 0.5, 0.3),
        "straight_through_gather_backward": (torch.randn(k, 8), x.tokens, x.scores, indices, *root, 0.3, [True, True]),
        "straight_through_mask": (x.tokens, x.scores, x.scores.flip(0), cu_lengths, cu_ks, n, 0.5, 0.3),
        "straight_through_mask_backward": (x.tokens, x.tokens, x.scores, mask, *root, 0.3, [False, True]),
        "select_tokens": (x.tokens, *x.weights, cu_lengths, cu_ks, k, n),
    }


def _argument_names(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.vs_kernels, name).default._schema.arguments]


@pytest.mark.parametrize("name", ["importance_scores", "soft_topk", "soft_topk_with_loss", "straight_through_mask"])
def test_forward_mode_is_refused_and_not_dropped(name: str) -> None:
    x = verify.Inputs.random(SelectionPlan([6], [2]), width=4, hidden=2, dtype=torch.float32)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        x.scores = torch.autograd.forward_ad.make_dual(x.scores, torch.ones(6))
        x.tokens = torch.autograd.forward_ad.make_dual(x.tokens, torch.ones(6, 4))
        verify.CALLS[name](vk, x)


@pytest.mark.parametrize("name", verify.CALLS)
def test_the_same_with_and_without_autograd(backend: str, name: str) -> None:
    """Without a gradient to record the operator is called directly."""
    x = verify.Inputs.random(SelectionPlan([60, 7], [12, 7]), width=16, hidden=8, dtype=torch.float32)
    for result, expected in zip(
        *(
            output if isinstance(output := verify.CALLS[name](vk, inputs), tuple) else (output,)
            for inputs in (x, x.leaves())
        ),
        strict=True,
    ):
        assert torch.equal(result, expected) and not result.requires_grad


def test_every_operator_is_checked() -> None:
    assert _bare_calls().keys() == {
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("vs_kernels::")
    }


@pytest.mark.parametrize("name", _bare_calls().keys())
def test_opcheck(backend: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(getattr(torch.ops.vs_kernels, name).default, _bare_calls()[name])


@pytest.mark.parametrize("name", verify.CALLS)
def test_compiles_whole_and_once(name: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = verify.CALLS[name]
    if name == "gather_tokens":

        def call(ops, x):
            return ops.gather_tokens(x.tokens, ops.topk_indices(x.scores, x.plan))

    def run(tokens, scores, weights, plan):
        return call(vk, verify.Inputs(plan, tokens, scores, weights))

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for lengths in ([50, 70], [33, 44, 20], [90, 7], [5, 6, 7, 80]):
        x = verify.Inputs.random(
            SelectionPlan.from_budget(lengths, 0.3), width=16, hidden=8, dtype=torch.float32
        ).leaves()
        actual = compiled(x.tokens, x.scores, x.weights, x.plan)
        expected = call(vk, x)
        torch.testing.assert_close(actual, expected)
        smooth = [out for out in (actual if isinstance(actual, tuple) else (actual,)) if out.requires_grad]
        if smooth:
            torch.autograd.grad([out.sum() for out in smooth], list(x.differentiable().values()), allow_unused=True)
        frames.append(counter.frame_count)
    assert frames[1:] == frames[:1] * 3


def test_selector_compiles_for_fixed_lengths() -> None:
    torch._dynamo.reset()
    selector = vk.VisionTokenSelector(vk.ImportanceScorer(16)).eval()
    tokens = torch.randn(2, 30, 16)
    compiled = torch.compile(lambda x: selector(x).tokens, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(tokens), selector(tokens).tokens)


def test_autocast_keeps_scores_in_float32() -> None:
    plan = SelectionPlan([40], [8])
    tokens = torch.randn(40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = torch.nn.functional.linear(tokens, torch.randn(1, 16))[:, 0]
        assert low.dtype == torch.bfloat16
        probs, _ = vk.soft_topk(low, plan)
        bare = torch.ops.vs_kernels.soft_topk(low, plan.cu_lengths(), plan.cu_ks(), plan.max_length, 1.0)[0]
        assert vk.importance_scores(tokens.bfloat16(), *vk.ImportanceScorer(16).weights()).dtype == torch.float32
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, vk.soft_topk(low.float(), plan)[0], rtol=0, atol=0)
    torch.testing.assert_close(bare, probs, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in _bare_calls() if "scores" in _argument_names(name)])
def test_autocast_takes_all_scores_of_lower_precision(name: str) -> None:
    """Of the dispatcher operators; on CUDA by the same rule."""
    op = getattr(torch.ops.vs_kernels, name).default
    scores = torch.randn(21).bfloat16()
    at = [i for i, argument in enumerate(_argument_names(name)) if argument in ("scores", "selection_scores")]
    arguments = _bare_calls()[name]
    low, high = list(arguments), list(arguments)
    for i in at:
        low[i], high[i] = scores, scores.float()
    expected = op(*high)
    with torch.autocast("cpu", torch.bfloat16):
        actual = op(*low)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "AutocastCUDA")


WRONG = {
    "tokens": [
        torch.randn(6, 8).double(),
        torch.zeros(6, 8, dtype=torch.int32),
        torch.randn(8),
        torch.randn(8, 6).T,
        None,
    ],
    "scores": [torch.randn(6).half(), torch.randn(7), torch.randn(2, 2, 2), [1.0] * 6],
    "plan": [[6], "plan"],
}
WRONG_BESIDE_A_PLAN = [torch.randn(5, 8), torch.randn(2, 4, 8)]  # tokens
WRONG_BESIDE_TOKENS = torch.randn(6, device="meta")  # scores


@pytest.mark.parametrize("name", verify.CALLS)
def test_wrong_arguments_are_named_with_what_came_and_what_was_expected(name: str) -> None:
    right = verify.Inputs.random(SelectionPlan([6], [2]), width=8, hidden=4, dtype=torch.float32)
    verify.CALLS[name](vk, right)
    takes_scores = name not in ("importance_scores", "select_tokens", "gather_tokens")
    takes = {"tokens": name in verify.TAKES_TOKENS, "scores": takes_scores, "plan": name != "gather_tokens"}
    cases = [(argument, value) for argument, values in WRONG.items() if takes[argument] for value in values]
    if takes["tokens"] and takes["plan"]:
        cases += [("tokens", value) for value in WRONG_BESIDE_A_PLAN]
    if takes["tokens"] and takes["scores"]:
        cases.append(("scores", WRONG_BESIDE_TOKENS))
    for argument, value in cases:
        with pytest.raises((TypeError, ValueError), match=rf"^{argument}: got .*, expected "):
            verify.CALLS[name](vk, dataclasses.replace(right, **{argument: value}))


def test_no_second_derivative_instead_of_a_wrong_one() -> None:
    scores = torch.randn(10, requires_grad=True)
    probs, _ = vk.soft_topk(scores, SelectionPlan([10], [3]))
    (grad,) = torch.autograd.grad(probs.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_functions_are_exported() -> None:
    forwards = [name for name in _bare_calls() if not name.endswith("_backward")]
    assert len(vk.functions.__all__) == len(forwards)
    assert all(issubclass(getattr(vk.functions, name), torch.autograd.Function) for name in vk.functions.__all__)
