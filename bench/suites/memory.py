"""Memory of every operator, exact to the byte: peak of a call, what it keeps for its backward, peak of both."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vs_kernels
from bench import ops_eager, published
from bench.allocations import allocated_by
from bench.command_line import exit_codes
from bench.ops_workload import BUDGET
from bench.points import Case, Measured, Point, parser, run, text
from vs_kernels import SelectionPlan
from vs_kernels.verify import Inputs

PROGRAM, SUITE = "python -m bench memory", "memory"
WIDTH, HIDDEN = 3584, 1792  # Qwen2.5-VL-7B
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16384), (1024, 4096)
OURS, PUBLISHED = "vs_kernels", "published"
MOST_SHARE = 1.0  # of the memory that the published algorithm takes

Loss = Callable[[Inputs], Tensor]  # the sum of what an operator returns, from leaves


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 with ``--check`` and a missed target; 130 interrupted."""
    args = parser(PROGRAM, __doc__, SUITE).parse_args(argv)
    lengths = QUICK_LENGTHS if args.quick else LENGTHS
    return run(PROGRAM, SUITE, args, lambda recorder, console: _cases(lengths, args.device), show)


def _soft_training(x: Inputs, score: Callable, soft: Callable, loss: Callable) -> Tensor:
    scores = score(x.tokens, *x.weights)
    probs = soft(scores)
    return (x.tokens * probs[:, None]).sum() + loss(probs, scores)


def operators() -> dict[str, dict[str, Loss]]:
    """By operator, its providers. The encoder is frozen in training: tokens need no gradient."""

    def ours_soft(x: Inputs) -> Tensor:
        return _soft_training(
            x,
            lambda *args: vs_kernels.importance_scores(*args, x.plan),
            lambda scores: vs_kernels.soft_topk(scores, x.plan)[0],
            lambda probs, scores: vs_kernels.topk_consistency_loss(scores, x.plan),
        )

    def published_soft(x: Inputs) -> Tensor:
        k = x.plan.total_kept
        return _soft_training(
            x,
            published.importance_scores,
            lambda scores: published.soft_topk(scores, k),
            lambda probs, scores: published.topk_consistency_loss(probs, scores, k),
        )

    def ours_gather(x: Inputs) -> Tensor:
        return vs_kernels.straight_through_gather(x.tokens, x.scores, x.plan)[0].sum()

    return {
        "importance_scores": {
            OURS: lambda x: vs_kernels.importance_scores(x.tokens, *x.weights, x.plan).sum(),
            PUBLISHED: lambda x: published.importance_scores(x.tokens, *x.weights).sum(),
        },
        "soft_topk": {
            OURS: lambda x: vs_kernels.soft_topk(x.scores, x.plan)[0].sum(),
            PUBLISHED: lambda x: published.soft_topk(x.scores, x.plan.total_kept).sum(),
        },
        "score, soft Top-K, loss": {OURS: ours_soft, PUBLISHED: published_soft},
        "straight_through_gather": {
            OURS: ours_gather,
            "composed": lambda x: ops_eager.straight_through_gather(x.tokens, x.scores, x.plan.total_kept).sum(),
        },
        "straight_through_mask": {
            OURS: lambda x: vs_kernels.straight_through_mask(x.tokens, x.scores, x.plan, dropped_scale=0.1).sum()
        },
    }


def _cases(lengths: Sequence[int], device: torch.device) -> Iterator[Case]:
    for length in lengths:
        for operator, providers in operators().items():
            measure = partial(_training, providers, length, device)
            yield Case({"operator": operator, "N": length}, measure)
        yield Case({"operator": "select_tokens", "N": length}, partial(_inference, length, device))


def _inputs(length: int, device: torch.device) -> Inputs:
    plan = SelectionPlan.from_budget([length], BUDGET)
    return Inputs.random(plan, WIDTH, HIDDEN, torch.float32, str(device))


def _training(providers: dict[str, Loss], length: int, device: torch.device) -> list[Point]:
    points = []
    for name, loss in providers.items():
        x = _inputs(length, device).leaves()
        x.tokens.requires_grad_(False)
        leaves = [x.scores, *x.weights]

        def both(loss: Loss = loss, x: Inputs = x, leaves: list[Tensor] = leaves) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(loss(x), leaves, allow_unused=True)

        _, forward = allocated_by(partial(loss, x), device)
        _, whole = allocated_by(both, device)
        for phase, size in (("forward", forward.peak), ("kept", forward.kept), ("both", whole.peak)):
            points.append(Point(f"{name}: {phase}", "bytes", [size], control=name != OURS))
    return points


def _inference(length: int, device: torch.device) -> list[Point]:
    x = _inputs(length, device)
    calls = {
        OURS: lambda: vs_kernels.select_tokens(x.tokens, *x.weights, x.plan),
        PUBLISHED: lambda: published.select_tokens(x.tokens, *x.weights, x.plan.total_kept),
    }
    sizes = {name: allocated_by(call, device)[1].peak for name, call in calls.items()}
    return [Point(f"{name}: forward", "bytes", [size], control=name != OURS) for name, size in sizes.items()]


def show(console: Console, measured: Measured) -> list[str]:
    """Print one line for every operator, provider and phase; return the missed targets."""
    sizes = sorted({key["N"] for key, _ in measured})
    table = Table(
        title=f"memory beyond the inputs, D = {WIDTH:,}, float32, budget 0.2", title_style="bold", title_justify="left",
        box=box.ROUNDED, header_style="bold",
    )  # fmt: skip
    for name in ("operator", "provider", "phase"):
        table.add_column(name)
    for size in sizes:
        table.add_column(f"N = {size:,}", justify="right")
    found = {(key["operator"], point.provider, key["N"]): point.median for key, point in measured}
    missed, previous = [], ""
    for operator, provider in dict.fromkeys(key[:2] for key in found):
        values = {size: found[operator, provider, size] for size in sizes if (operator, provider, size) in found}
        name, _, phase = provider.partition(": ")
        cells = [text(values[size], "bytes") if size in values else "-" for size in sizes]
        table.add_row("" if operator == previous else operator, name, phase, *cells)
        previous = operator
        for size, value in values.items():
            other = next(
                (found[operator, f"{them}: {phase}", size] for them in (PUBLISHED, "composed")
                 if (operator, f"{them}: {phase}", size) in found), None,
            )  # fmt: skip
            if name == OURS and other is not None and value > MOST_SHARE * other:
                missed.append(f"{operator}, N={size:,}, {phase}: {value:,.0f} bytes, expected at most {other:,.0f}")
    console.print(table)
    console.print(
        "Counted at PyTorch's allocators. Forward: the peak of the call; kept: what stays allocated for the backward, "
        "results included; both: the peak of forward and backward.",
        style="dim",
    )
    return missed
