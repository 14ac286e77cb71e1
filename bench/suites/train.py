"""A training step of a selector in front of a frozen model: time and memory against the published recipe."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.command_line import count, exit_codes
from bench.harness import Clock, Recorder
from bench.points import Case, Measured, Point, parser, run, text

if TYPE_CHECKING:
    from bench.models import Architecture
    from bench.subject import Subject

PROGRAM, SUITE = "python -m bench train", "train"
SEED, VISUAL_TOKENS = 0, 1024
LEAST_SPEEDUP, LEAST_MEMORY_RATIO = 2.0, 2.0
STEP, WITHOUT_VIT, ACTIVATIONS, PEAK = "step", "step without ViT", "activations", "peak"


@exit_codes(PROGRAM)
def main(argv: Sequence[str], size: "Architecture | None" = None, visual_tokens: int = VISUAL_TOKENS) -> int:
    """Run the suite.

    Args:
        argv: command line after the name of the suite.
        size: of the model with random weights; None: the demo's.
        visual_tokens: of the photo.

    Returns:
        Exit code: 0; 1 for a wrong result, or with ``--check`` a missed target; 130 interrupted.
    """
    arguments = parser(PROGRAM, __doc__, SUITE)
    arguments.add_argument("--rounds", type=count, metavar="N", help="steps of each recipe (default: 5, --quick: 1)")
    args = arguments.parse_args(argv)
    rounds = args.rounds or (1 if args.quick else 5)

    def make_cases(recorder: Recorder, console: Console) -> Iterator[Case]:
        from bench.models import DEMO
        from bench.photo import read_photo
        from bench.prompt import Request
        from bench.subject import load_subjects
        from bench.train_step import GATHERED, PROVIDERS, PUBLISHED

        with console.status("loading the model"):
            request = Request(visual_tokens)
            (subject,) = load_subjects(
                read_photo(None), [request], size or DEMO, None, args.device, torch.float32, "sdpa", SEED
            )
        console.print(f"model    {subject.description}; {sum(subject.lengths):,} visual tokens, budget 0.2, float32")
        providers = (PUBLISHED, GATHERED, "straight-through, masked") if args.quick else PROVIDERS
        yield from _cases(subject, providers, rounds, args.device)

    return run(PROGRAM, SUITE, args, make_cases, show, {"rounds": rounds, "visual_tokens": visual_tokens})


def _cases(subject: "Subject", providers: Sequence[str], rounds: int, device: torch.device) -> Iterator[Case]:
    from bench.train_step import PUBLISHED, check_soft, timed_step

    tokens = sum(subject.lengths)
    # The memory first: it is the warm-up.
    for provider in providers:
        yield Case({"N": tokens, "what": "memory", "recipe": provider}, partial(_memory, subject, provider, device))
    clock = Clock(device)
    steps = {}

    def timed(provider: str) -> list[Point]:
        steps[provider] = step = timed_step(subject, provider, clock)
        if {"soft", PUBLISHED} <= steps.keys() and provider in ("soft", PUBLISHED):
            check_soft(steps["soft"], steps[PUBLISHED])
        times = {STEP: step.whole.wall, WITHOUT_VIT: step.without_vit.wall}
        control = provider == PUBLISHED
        return [Point(f"{provider}: {what}", "s", [time], control=control) for what, time in times.items()]

    for number in range(1, rounds + 1):
        for provider in providers[:: 1 if number % 2 else -1]:
            yield Case({"N": tokens, "recipe": provider, "round": number}, partial(timed, provider))


def _memory(subject: "Subject", provider: str, device: torch.device) -> list[Point]:
    from bench.allocations import allocated_by
    from bench.train_step import Trainee

    with Trainee(subject, provider) as trainee:
        loss, forward = allocated_by(trainee.forward, device)
        loss.backward()
        trainee.optimizer.zero_grad()
        del loss
        trainee.handle.forget()
        _, whole = allocated_by(lambda: trainee.forward().backward(), device)
    return [
        Point(f"{provider}: {ACTIVATIONS}", "bytes", [forward.kept]),
        Point(f"{provider}: {PEAK}", "bytes", [whole.peak]),
    ]


def by_provider(measured: Measured) -> dict[str, dict[str, float]]:
    """Medians: recipe -> quantity -> value."""
    result: dict[str, dict[str, float]] = {}
    for _, point in measured:
        name, _, what = point.provider.rpartition(": ")
        result.setdefault(name, {})[what] = point.median
    return result


def show(console: Console, measured: Measured) -> list[str]:
    """Print one line for every recipe; return the missed targets."""
    from bench.train_step import GATHERED, PUBLISHED

    found = by_provider(measured)
    table = Table(title="A training step", title_style="bold", box=box.ROUNDED, header_style="bold")
    table.add_column("recipe")
    for name in ("step", "faster", "without ViT", "faster", "activations", "less", "peak", "less"):
        table.add_column(name, justify="right")
    base = found[PUBLISHED]
    for recipe, values in found.items():
        cells = []
        for what, unit in ((STEP, "s"), (WITHOUT_VIT, "s"), (ACTIVATIONS, "bytes"), (PEAK, "bytes")):
            cells += [text(values[what], unit), f"{base[what] / values[what]:.2f}x"]
        table.add_row(recipe, *cells)
    console.print(table)
    console.print(
        "Faster, less: against the published soft recipe. Step: forward, backward, optimizer; medians of interleaved "
        "rounds. Activations: allocated when the forward is done; peak: most in a step; beyond weights and inputs.",
        style="dim",
    )
    missed = []
    gathered = found[GATHERED]
    for what, least in ((STEP, LEAST_SPEEDUP), (ACTIVATIONS, LEAST_MEMORY_RATIO)):
        ratio = base[what] / gathered[what]
        if ratio < least:
            missed.append(f"{GATHERED}, {what}: {ratio:.2f}x less than {PUBLISHED}, expected at least {least:g}x")
    return missed
