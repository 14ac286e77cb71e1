"""Every operator on the shapes of real models, forward, backward and both, against everybody who computes the same."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vs_kernels
from bench import device_timing
from bench.command_line import exit_codes
from bench.harness import Seconds
from bench.model_shapes import ITEMS, MODELS, tokens
from bench.ops_timing import Call, Timer
from bench.ops_verify import Verify, WrongResult, near
from bench.ops_workload import BUDGET
from bench.points import Case, Measured, Point, parser, run, text
from bench.providers import Forward, Missing, Operator, operators
from vs_kernels import SelectionPlan, reference
from vs_kernels.library import kernel_of, plain_kernels
from vs_kernels.verify import Inputs

PROGRAM, SUITE = "python -m bench shapes", "shapes"
MODES = ("forward", "backward", "both")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SECONDS, QUICK_SECONDS = 0.6, 0.15
QUICK = {"models": ["Qwen2.5-VL-7B"], "items": ["448"]}
DEFINITION_TOKENS = 16384  # beyond, the published N x N matrix takes more than 1 GiB
NEEDS_MATRIX = ("importance_scores", "select_tokens")


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 for a wrong result; 130 interrupted."""
    arguments = parser(PROGRAM, __doc__, SUITE)
    names = list(operators(compiled=False))
    arguments.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    arguments.add_argument("--items", nargs="+", choices=ITEMS, metavar="NAME", help=f"of {', '.join(ITEMS)}")
    arguments.add_argument("--operators", nargs="+", choices=names, default=names, metavar="NAME", help="default: all")
    arguments.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    arguments.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of tokens and weights (default: float32)"
    )
    args = arguments.parse_args(argv)
    chosen = {
        "models": args.models or (QUICK["models"] if args.quick else list(MODELS)),
        "items": args.items or (QUICK["items"] if args.quick else list(ITEMS)),
        "operators": args.operators, "modes": args.modes, "dtype": args.dtype,
    }  # fmt: skip
    grid = Grid(args.device, DTYPES[args.dtype], QUICK_SECONDS if args.quick else SECONDS, compiled=not args.quick)
    return run(PROGRAM, SUITE, args, lambda *_: grid.cases(chosen), show, chosen)


class Grid:
    """Measures operators on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float, compiled: bool):
        self.device, self.dtype = device, dtype
        self._timer = Timer(device, seconds)
        self._operators = operators(compiled)

    def cases(self, chosen: dict[str, Any]) -> Iterator[Case]:
        for model in chosen["models"]:
            for item in chosen["items"]:
                count = tokens(model, item)
                for name in chosen["operators"]:
                    for mode in chosen["modes"]:
                        if mode == "forward" or self._operators[name].leaves:
                            key = {"model": model, "item": item, "N": count, "operator": name, "mode": mode}
                            yield Case(key, partial(self._measure, name, mode, count, MODELS[model].width))

    def _measure(self, name: str, mode: str, count: int, width: int) -> list[Point]:
        operator = self._operators[name]
        plan = SelectionPlan.from_budget([count], BUDGET)
        x = Inputs.random(plan, width, width // 2, self.dtype, str(self.device))
        kept = reference.topk_indices(x.scores, plan)
        verify = near(*(self._truth(operator, mode, x, kept, dtype) for dtype in (torch.float64, torch.float32)))
        ours = partial(operator.ours, vs_kernels)
        providers = {f"vs_kernels, {kernel_of(name, self.device.type)}": ours, **operator.others}
        where = f"{name}, {mode}, N={count:,}"
        if name in NEEDS_MATRIX and count > DEFINITION_TOKENS:
            reason = f"its {count:,} x {count:,} matrix takes {4 * count**2 / 1e9:,.1f} GB: not run"
            providers |= {other: partial(_refuse, reason) for other in providers if other.startswith("published")}
        prepare = partial(_call, operator, mode=mode, x=x, kept=kept)
        points = self._group(where, {who: partial(prepare, forward) for who, forward in providers.items()}, verify)
        if self.device.type == "cpu":
            # Apart from the others: to change kernels takes longer than many of them.
            with plain_kernels():
                points += self._group(where, {"vs_kernels, PyTorch": partial(prepare, ours)}, verify)
        return points

    def _group(self, where: str, prepared: dict[str, Callable[[], Call]], verify: Verify) -> list[Point]:
        """The points of providers that are timed in interleaved rounds."""
        calls: dict[str, Call] = {}
        first: dict[str, Seconds] = {}
        missing = []
        for provider, prepare in prepared.items():
            try:
                call = prepare()
                call()  # what is compiled, is compiled here
                results, first[provider] = self._timer.first(call)
                verify(results)
            except Missing as reason:
                missing.append(Point.absent(provider, str(reason)))
                continue
            except WrongResult as error:
                raise WrongResult(f"{where}: {provider}: {error}") from None
            calls[provider] = call
        return (self._on_cuda(calls) if self.device.type == "cuda" else self._on_cpu(calls, first)) + missing

    def _on_cpu(self, calls: dict[str, Call], first: dict[str, Seconds]) -> list[Point]:
        timings, _ = self._timer.compare(calls, first)
        return [Point.timed(name, timing, not name.startswith("vs_kernels")) for name, timing in timings.items()]

    def _on_cuda(self, calls: dict[str, Call]) -> list[Point]:
        """By events, with a warm and a cold L2 cache, called by the host and replayed as a graph."""
        all_ways, points = {}, []
        for name, call in calls.items():
            found, missing = device_timing.ways(call)
            all_ways |= {f"{name}{way}": run_it for way, run_it in found.items()}
            points += [Point.absent(f"{name}{way}", reason) for way, reason in missing.items()]
        for cold in (False, True):
            for name, timing in device_timing.timed(all_ways, cold).items():
                control = not name.startswith("vs_kernels")
                points.append(Point.timed(f"{name}{', cold L2' if cold else ''}", timing, control))
        return points

    @staticmethod
    def _truth(operator: Operator, mode: str, x: Inputs, kept: Tensor, dtype: torch.dtype) -> list[Tensor]:
        tokens, scores, *weights = (value.to(dtype) for value in (x.tokens, x.scores, *x.weights))
        wide = Inputs(x.plan, tokens, scores, tuple(weights))  # type: ignore[arg-type]
        return _call(operator, partial(operator.ours, _Definitions()), mode, wide, kept)()


class _Definitions:
    """The reference, its scores without the N x N matrix."""

    def __getattr__(self, name: str) -> Any:
        if name == "importance_scores":
            return lambda *args: reference.importance_scores_collapsed(*args)[0]
        if name == "select_tokens":
            return lambda *args: (None, None, reference.importance_scores_collapsed(*args)[0])
        return getattr(reference, name)


def _refuse(reason: str, *_: object) -> tuple[Tensor, ...]:
    raise Missing(reason)


def _call(operator: Operator, forward: Forward, mode: str, x: Inputs, kept: Tensor) -> Call:
    """The call that is timed; it returns what is verified."""
    if mode == "forward":
        return lambda: list(forward(x, kept))
    x = x.leaves()
    by_name = x.differentiable()
    leaves = [by_name[name] for name in operator.leaves]
    for name, leaf in by_name.items():
        leaf.requires_grad_(name in operator.leaves)
    out = forward(x, kept)[0]
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    if mode == "backward":
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
    return lambda: torch.autograd.grad(forward(x, kept)[0], leaves, grad)


def show(console: Console, measured: Measured) -> list[str]:
    """Print one line for every operator and shape, each competitor with its ratio."""
    table = Table(title="Operators on the shapes of real models", title_style="bold", box=box.ROUNDED)
    for name in ("shape", "operator", "mode", "provider"):
        table.add_column(name)
    for name in ("time", "of ours"):
        table.add_column(name, justify="right")
    ours: dict[str, float] = {}
    for key, point in measured:
        where = str(key)
        if point.values:
            ours.setdefault(where, point.median)  # the library comes first
    previous = ""
    for key, point in measured:
        where = str(key)
        shape = f"{key['model']}, {key['item']}: N={key['N']:,}"
        cells = ("", "", "") if where == previous else (shape, key["operator"], key["mode"])
        previous = where
        if point.values:
            table.add_row(*cells, point.provider, text(point.median, "s"), f"{point.median / ours[where]:.2f}x")
        else:
            table.add_row(*cells, point.provider, "missing", "")
    console.print(table)
    for reason in dict.fromkeys(f"{point.provider}: {point.missing}" for _, point in measured if point.missing):
        console.print(f"missing: {reason}", style="dim")
    console.print("Medians of interleaved rounds, every result verified against float64.", style="dim")
    return []
