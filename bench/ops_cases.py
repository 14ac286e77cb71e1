"""The comparisons of the suite ``ops``: for every operator its competitors, its targets, and its true results."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import vs_kernels
from bench import ops_eager, published
from bench.heap import fresh_bytes
from bench.ops_timing import Call
from bench.ops_verify import Results, Verify, WrongResult, near
from bench.ops_workload import Workload
from bench.providers import flashinfer_indices
from vs_kernels import reference
from vs_kernels.verify import Inputs

DEFINITION = "definition"
REACHED = 0.8  # share of what a machine can move in a second that counts as all of it


class Pair(NamedTuple):
    """Ours and a competitor on the same inputs, ready to be called; both return a tuple of results.

    Attributes:
        ours, theirs: the calls; without a competitor ours is timed alone.
        verify: raises unless results are right.
        verify_theirs: the same for a competitor that computes something else.
        moved: bytes that ours reads and writes at least; None where it works in the caches.
        fresh: those among them that it writes to memory fresh from the system.
        flops, their_flops: floating-point operations of a call; None where there are hardly any.
        their_moved: bytes that theirs reads and writes at least.
    """

    ours: Call
    theirs: Call | None
    verify: Verify
    verify_theirs: Verify | None = None
    moved: int | None = None
    flops: int | None = None
    their_moved: int | None = None
    their_flops: int | None = None
    fresh: int = 0


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        operator, shape, against: what the reader sees.
        target: least ratio of their time to ours; None: shown, not judged.
        prepare: makes the inputs and the true results.
        slow: left out by ``--quick``.
        compiled: whether the competitor's first call compiles it.
        note: what a reader must know of the competitor.
    """

    operator: str
    shape: str
    against: str
    target: float | None
    prepare: Callable[[Workload], Pair]
    slow: bool = False
    compiled: bool = False
    note: str = ""


def cases(work: Workload) -> Iterator[Case]:
    """All rows, in the order of the table of targets (issue 3); those for a GPU alone stand among them."""
    sizes = work.sizes
    float32, bfloat16 = torch.float32, torch.bfloat16
    short, middle, long, longest = sizes.short, sizes.middle, sizes.long, sizes.longest

    forward = "importance_scores"
    for length, target in ((middle, 250), (long, 600)):
        prepare = partial(_scores, length=length, dtype=float32, competitor=published.importance_scores)
        yield Case(forward, f"N={length:,} float32", DEFINITION, target, prepare, slow=length == long)
    for length in (middle, long):
        shape = f"N={length:,} bfloat16"
        prepare = partial(_scores, length=length, dtype=bfloat16, competitor=ops_eager.collapsed_scores)
        yield Case(forward, shape, "collapsed, eager", 10, prepare)
        compiled = torch.compile(ops_eager.collapsed_scores_by_sums, dynamic=False)
        prepare = partial(_scores, length=length, dtype=bfloat16, competitor=compiled)
        yield Case(forward, shape, "collapsed, compiled", 1.5, prepare, slow=True, compiled=True)
    for dtype in (float32, bfloat16):
        for length in (middle, long):
            shape = f"N={length:,} {_name(dtype)}"
            yield Case(forward, shape, "reading as much", REACHED, partial(_reading, length=length, dtype=dtype))
    prepare = partial(_weight_gradients, length=middle)
    yield Case(f"{forward} + backward", f"N={middle:,} float32", DEFINITION, 100, prepare, slow=True)

    yield Case("topk_indices", f"N={long:,} k=20%", "topk + sort", 6, partial(indices, length=long))
    if work.device.type == "cuda":
        for length in (long, longest):
            yield Case("topk_indices", f"N={length:,} k=20%", "FlashInfer", None, partial(flashinfer, length=length))
        yield Case("topk_indices", f"N={longest:,} k=20%", "topk + sort", None, partial(indices, length=longest))
    for temperature in (1.0, 0.1):
        shape = f"N={long:,} τ={temperature:g}"
        prepare = partial(soft, length=long, temperature=temperature)
        yield Case("soft_topk", shape, "64 bisections", 25, prepare)
    yield Case("hard + soft + loss + backward", f"N={long:,} k=20%", "published", 25, partial(_loss, length=long))
    for name, against, target, prepare in (
        ("gather_tokens", "index_select", 1.0, _gather),
        ("gather_tokens backward", "indexing", 1.5, _gather_backward),
    ):
        for length, dtype in ((middle, float32), (long, bfloat16)):
            shape = f"N={length:,} {_name(dtype)}"
            yield Case(name, shape, against, target, partial(prepare, length=length, dtype=dtype))
    yield Case(
        "straight_through_gather backward", f"N={middle:,} float32", "composed", 3,
        partial(straight_through, length=middle),
    )  # fmt: skip
    for length, target in ((short, 50), (middle, None), (long, 500)):
        prepare = partial(select, length=length)
        yield Case(
            "select_tokens", f"N={length:,} float32", "published inference", target, prepare, slow=length == long
        )
    if work.device.type == "cuda":
        compiled = torch.compile(ops_eager.select_tokens, dynamic=False)
        for length in (middle, long, longest):
            shape = f"N={length:,} bfloat16"
            prepare = partial(select, length=length, dtype=bfloat16, competitor=ops_eager.select_tokens)
            yield Case("select_tokens", shape, "collapsed, eager", None, prepare)
            prepare = partial(select, length=length, dtype=bfloat16, competitor=compiled)
            yield Case("select_tokens", shape, "collapsed, compiled", None, prepare, slow=True, compiled=True)
    matrix = f"the definition's {longest:,} x {longest:,} matrix alone takes {longest**2 * 4 / 1e9:.1f} GB: not run"
    prepare = partial(select, length=longest, alone=True)
    yield Case("select_tokens", f"N={longest:,} float32", "alone", None, prepare, slow=True, note=matrix)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def collapsed_flops(length: int, width: int, hidden: int) -> int:
    """Of the scores without the N x N matrix: mean, two products with a vector, one dot product a token."""
    return 3 * length * width + 4 * hidden * width


def definition_flops(length: int, width: int, hidden: int) -> int:
    return 4 * length * width * hidden + 2 * length**2 * hidden


def definition_bytes(x: Inputs) -> int:
    """Tokens and weights read, queries and keys written and read, the N x N matrix written and read."""
    length, hidden = len(x.tokens), len(x.weights[1])
    return x.tokens.nbytes + _bytes(*x.weights) + (4 * length * hidden + 2 * length**2) * x.tokens.element_size()


def _scores(work: Workload, length: int, dtype: torch.dtype, competitor: Callable[..., Tensor]) -> Pair:
    x = work.inputs(length, dtype)
    true, single = work.true_scores(length, dtype)
    sizes = work.sizes.width, work.sizes.hidden
    published_work = {}
    if competitor is published.importance_scores:
        published_work = {"their_moved": definition_bytes(x), "their_flops": definition_flops(length, *sizes)}
    return Pair(
        lambda: (vs_kernels.importance_scores(x.tokens, *x.weights, x.plan),),
        lambda: (competitor(x.tokens, *x.weights),),
        near([true], [single]),
        moved=2 * x.tokens.nbytes + _bytes(*x.weights),
        flops=collapsed_flops(length, *sizes),
        **published_work,
    )


def _reading(work: Workload, length: int, dtype: torch.dtype) -> Pair:
    x = work.inputs(length, dtype)
    true, single = work.true_scores(length, dtype)
    moved = 2 * x.tokens.nbytes + _bytes(*x.weights)
    read = torch.tensor(work.stream.floats(moved), dtype=torch.float64, device=work.device)
    return Pair(
        lambda: (vs_kernels.importance_scores(x.tokens, *x.weights, x.plan),),
        lambda: (work.stream.read(moved),),
        near([true], [single]),
        verify_theirs=near([read], [read]),
        moved=moved,
    )


def _weight_gradients(work: Workload, length: int) -> Pair:
    x = work.inputs(length, torch.float32)
    grad = work.normal(length)

    def gradients(score: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Results:
        weights = [weight.detach().to(dtype).requires_grad_() for weight in x.weights]
        scores = score(x.tokens.to(dtype), *weights)
        return [scores.detach(), *torch.autograd.grad(scores, weights, grad.to(dtype))]

    def collapsed(*args: Tensor) -> Tensor:
        return reference.importance_scores_collapsed(*args, x.plan)[0]

    return Pair(
        lambda: gradients(lambda *args: vs_kernels.importance_scores(*args, x.plan)),
        lambda: gradients(published.importance_scores),
        near(gradients(collapsed, torch.float64), gradients(collapsed)),
        # The backward reads the tokens once and one weight, and writes the gradients of both.
        moved=3 * x.tokens.nbytes + _bytes(*x.weights) + x.weights[0].nbytes + _bytes(*x.weights),
        fresh=fresh_bytes(*x.weights),
    )


def indices(work: Workload, length: int) -> Pair:
    x = work.inputs(length, torch.float32)
    true = reference.topk_indices(x.scores, x.plan)
    return Pair(
        lambda: (vs_kernels.topk_indices(x.scores, x.plan),),
        lambda: (published.topk_indices(x.scores, x.plan.total_kept),),
        near([true], [true]),
    )


def flashinfer(work: Workload, length: int) -> Pair:
    x = work.inputs(length, torch.float32)
    return indices(work, length)._replace(theirs=lambda: flashinfer_indices(x, x.tokens))


def soft(work: Workload, length: int, temperature: float) -> Pair:
    x = work.inputs(length, torch.float32)
    return Pair(
        lambda: (vs_kernels.soft_topk(x.scores, x.plan, temperature)[0],),
        lambda: (ops_eager.soft_topk(x.scores, x.plan.total_kept, temperature),),
        near(*([reference.soft_topk(scores, x.plan, temperature)[0]] for scores in (x.scores.double(), x.scores))),
    )


def _loss(work: Workload, length: int) -> Pair:
    """Probabilities that scale tokens, and the loss: both send a gradient to the scores."""
    x = work.inputs(length, torch.float32)
    grad_probs = work.normal(length)

    def ours(scores: Tensor) -> tuple[Tensor, Tensor]:
        probs, _, loss = vs_kernels.soft_topk_with_loss(scores, x.plan)
        return probs, loss

    def theirs(scores: Tensor) -> tuple[Tensor, Tensor]:
        probs = published.soft_topk(scores, x.plan.total_kept)
        return probs, published.topk_consistency_loss(probs, scores, x.plan.total_kept)

    def definition(scores: Tensor) -> tuple[Tensor, Tensor]:
        return reference.soft_topk(scores, x.plan)[0], reference.topk_consistency_loss(scores, x.plan)

    def both_ways(forward: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> Results:
        scores = x.scores.detach().to(dtype).requires_grad_()
        probs, loss = forward(scores)
        return [probs, loss, *torch.autograd.grad([probs, loss], scores, [grad_probs.to(dtype), torch.ones_like(loss)])]

    return Pair(
        lambda: both_ways(ours),
        lambda: both_ways(theirs),
        near(both_ways(definition, torch.float64), both_ways(definition)),
    )


def _kept(x: Inputs) -> Tensor:
    return reference.topk_indices(x.scores, x.plan)


def _gather(work: Workload, length: int, dtype: torch.dtype) -> Pair:
    x = work.inputs(length, dtype)
    indices = _kept(x)
    true = x.tokens[indices]
    return Pair(
        lambda: (vs_kernels.gather_tokens(x.tokens, indices),),
        lambda: (x.tokens.index_select(0, indices),),
        near([true], [true]),
        moved=2 * true.nbytes,
    )


def _gather_backward(work: Workload, length: int, dtype: torch.dtype) -> Pair:
    x = work.inputs(length, dtype)
    indices = _kept(x)
    tokens = x.tokens.detach().requires_grad_()
    grad = work.normal(x.plan.total_kept, work.sizes.width, dtype=dtype)
    true = torch.zeros_like(x.tokens).index_copy_(0, indices, grad)
    ours, theirs = vs_kernels.gather_tokens(tokens, indices), tokens[indices]
    return Pair(
        lambda: torch.autograd.grad(ours, tokens, grad, retain_graph=True),
        lambda: torch.autograd.grad(theirs, tokens, grad, retain_graph=True),
        near([true], [true]),
        moved=grad.nbytes + x.tokens.nbytes,
        fresh=fresh_bytes(x.tokens),
    )


def straight_through(work: Workload, length: int) -> Pair:
    x = work.inputs(length, torch.float32)
    grad = work.normal(x.plan.total_kept, work.sizes.width)

    def backward(forward: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Call:
        inputs = [value.detach().to(dtype).requires_grad_() for value in (x.tokens, x.scores)]
        kept = forward(*inputs)
        return lambda: torch.autograd.grad(kept, inputs, grad.to(dtype), retain_graph=True)

    def definition(tokens: Tensor, scores: Tensor) -> Tensor:
        return reference.straight_through_gather(tokens, scores, x.plan)[0]

    return Pair(
        backward(lambda tokens, scores: vs_kernels.straight_through_gather(tokens, scores, x.plan)[0]),
        backward(lambda tokens, scores: ops_eager.straight_through_gather(tokens, scores, x.plan.total_kept)),
        near(backward(definition, torch.float64)(), backward(definition)()),
        # It reads the kept rows and their gradients, and writes the gradient of every row.
        moved=2 * grad.nbytes + x.tokens.nbytes,
        fresh=fresh_bytes(x.tokens),
    )


def select(
    work: Workload,
    length: int,
    alone: bool = False,
    dtype: torch.dtype = torch.float32,
    competitor: Callable[..., tuple[Tensor, ...]] = published.select_tokens,
) -> Pair:
    x = work.inputs(length, dtype)
    true, single = work.true_scores(length, dtype)
    near_true_scores = near([true], [single])
    kept = x.tokens[: x.plan.total_kept]
    defined = not alone and competitor is published.select_tokens

    def verify(results: Results) -> None:
        kept, indices, scores = results
        near_true_scores([scores])
        # Near ties rank by the scores as computed: the choice must fit them, and the rows must fit the choice.
        if not torch.equal(indices, reference.topk_indices(scores, x.plan)):
            raise WrongResult("the indices are not those of the largest scores")
        if not torch.equal(kept, x.tokens[indices]):
            raise WrongResult("the kept rows are not those of the indices")

    return Pair(
        lambda: vs_kernels.select_tokens(x.tokens, *x.weights, x.plan)[:3],
        None if alone else lambda: competitor(x.tokens, *x.weights, x.plan.total_kept)[:3],
        verify,
        moved=2 * x.tokens.nbytes + _bytes(*x.weights) + 2 * kept.nbytes,
        fresh=fresh_bytes(kept),
        flops=collapsed_flops(length, work.sizes.width, work.sizes.hidden),
        their_moved=definition_bytes(x) if defined else None,
        their_flops=definition_flops(length, work.sizes.width, work.sizes.hidden) if defined else None,
    )
