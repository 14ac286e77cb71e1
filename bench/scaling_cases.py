"""The cases of the suite ``scaling``: one pool of more and more tokens, and more and more pools of 256."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import vs_kernels
from bench import ops_cases, ops_eager, published
from bench.allocations import allocated_by
from bench.harness import Seconds
from bench.ops_timing import Call, Timer
from bench.ops_verify import Results, Verify, WrongResult, near
from bench.ops_workload import BUDGET, Sizes, Workload
from bench.points import Case, Point
from vs_kernels import SelectionPlan, reference
from vs_kernels.verify import Inputs

OURS, PUBLISHED, COLLAPSED = "vs_kernels", "published", "collapsed, eager"
WIDTH, HIDDEN = 512, 256
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144, 1048576)
QUICK_LENGTHS = LENGTHS[:5]
POOLS = (1, 4, 16, 64, 256, 1024)
POOL_TOKENS = 256
PUBLISHED_TOKENS = 16384  # of one pool: beyond, its N x N matrix takes more than 1 GiB
BYTES_A_NUMBER = 80  # of the inputs, with all that verifies them in float64


def cases(device: torch.device, quick: bool, timer: Timer) -> Iterator[Case]:
    """Every operator over N, then the whole selection over the number of pools."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    for length in lengths:
        key = {"operator": "select_tokens", "N": length}
        yield Case(key, partial(_selection, [length], device, timer, 4096 if quick else PUBLISHED_TOKENS))
    work = Workload(Sizes(width=WIDTH, hidden=HIDDEN), device, None, 0)
    others: dict[str, tuple[str, Callable[..., ops_cases.Pair]]] = {
        "topk_indices": ("topk + sort", ops_cases.indices),
        "soft_topk": ("64 bisections", partial(ops_cases.soft, temperature=1.0)),
        "straight_through_gather backward": ("composed", ops_cases.straight_through),
    }
    for operator, (against, prepare) in others.items():
        for length in lengths:
            key = {"operator": operator, "N": length}
            yield Case(key, partial(_pair, partial(prepare, work, length=length), against, timer, length))
    for pools in POOLS:
        key = {"operator": "select_tokens", "pools": pools}
        yield Case(key, partial(_selection, [POOL_TOKENS] * pools, device, timer, POOL_TOKENS))


def _free_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _too_large(tokens: int) -> str:
    needed, free = tokens * WIDTH * BYTES_A_NUMBER // 4, _free_bytes()
    return f"takes {needed / 1e9:.1f} GB with its verification, {free / 1e9:.1f} GB are free" if needed > free else ""


def _pair(prepare: Callable[[], ops_cases.Pair], against: str, timer: Timer, length: int) -> list[Point]:
    if reason := _too_large(length):
        return [Point.absent(OURS, reason), Point.absent(against, reason)]
    pair = prepare()
    calls = {OURS: pair.ours, against: pair.theirs}
    return _timed(calls, dict.fromkeys(calls, pair.verify), timer, {against})


def _timed(calls: dict[str, Call], verify: dict[str, Verify], timer: Timer, controls: set[str]) -> list[Point]:
    first: dict[str, Seconds] = {}
    for name, call in calls.items():
        results, first[name] = timer.first(call)
        try:
            verify[name](results)
        except WrongResult as error:
            raise WrongResult(f"{name}: {error}") from None
        del results
    timings, _ = timer.compare(calls, first)
    return [Point.timed(name, timing, name in controls) for name, timing in timings.items()]


def _selection(lengths: Sequence[int], device: torch.device, timer: Timer, published_tokens: int) -> list[Point]:
    """Times and memory of a selection; competitors take pool after pool, as they know one only."""
    if reason := _too_large(sum(lengths)):
        return [Point.absent(name, reason) for name in (OURS, COLLAPSED, PUBLISHED)]
    plan = SelectionPlan.from_budget(lengths, BUDGET)
    x = Inputs.random(plan, WIDTH, HIDDEN, torch.float32, str(device))
    calls: dict[str, Call] = {
        OURS: lambda: vs_kernels.select_tokens(x.tokens, *x.weights, x.plan)[:3],
        COLLAPSED: lambda: _by_pool(x, ops_eager.select_tokens),
    }
    missing = []
    if max(lengths) <= published_tokens:
        calls[PUBLISHED] = lambda: _by_pool(x, published.select_tokens)
    else:
        matrix = max(lengths) ** 2 * 4
        reason = f"its {max(lengths):,} x {max(lengths):,} matrix takes {matrix / 1e9:,.1f} GB: not run"
        missing = [Point.absent(PUBLISHED, reason)]
    points = _timed(calls, dict.fromkeys(calls, _right(x)), timer, {PUBLISHED, COLLAPSED})
    memory = [
        Point(name, "bytes", [allocated_by(call, device)[1].peak], control=name != OURS)
        for name, call in calls.items()
        if sum(lengths) <= PUBLISHED_TOKENS or name != PUBLISHED
    ]
    return [*points, *memory, *missing]


def _by_pool(x: Inputs, select: Callable[..., tuple[Tensor, ...]]) -> Results:
    parts, start = [], 0
    for tokens, k in zip(x.tokens.split(list(x.plan.lengths)), x.plan.ks, strict=True):
        kept, indices, scores = select(tokens, *x.weights, k)[:3]
        parts.append((kept, indices + start, scores))
        start += len(tokens)
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def _right(x: Inputs) -> Verify:
    """The scores are those of float64; indices and rows fit the scores, by which near ties are ranked."""

    def scores(dtype: torch.dtype) -> Tensor:
        tokens, *weights = (value.to(dtype) for value in (x.tokens, *x.weights))
        return reference.importance_scores_collapsed(tokens, *weights, x.plan)[0]

    near_true_scores = near([scores(torch.float64)], [scores(torch.float32)])

    def verify(results: Results) -> None:
        kept, indices, found = results
        near_true_scores([found])
        if not torch.equal(indices, reference.topk_indices(found, x.plan)):
            raise WrongResult("the indices are not those of the largest scores")
        if not torch.equal(kept, x.tokens[indices]):
            raise WrongResult("the kept rows are not those of the indices")

    return verify
