"""How time and memory grow with tokens and pools: fitted exponents, and where the library becomes the faster one."""

from collections.abc import Sequence
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table

from bench.command_line import exit_codes
from bench.ops_timing import Timer
from bench.points import Measured, parser, run, text
from bench.scaling_cases import OURS, POOL_TOKENS, WIDTH, cases
from bench.scaling_fit import Fit, crossing, fit

PROGRAM, SUITE = "python -m bench scaling", "scaling"
SECONDS, QUICK_SECONDS = 1.0, 0.3  # that the calls of one case take together
MOST_EXPONENT = 1.05
CHECKED_TOKENS = 262_144
Curves = dict[tuple[str, str, str, str], dict[int, float]]  # operator, "N" or "pools", unit, provider: curve


@exit_codes(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 1 for a wrong result, or with ``--check`` a missed target; 130 interrupted."""
    args = parser(PROGRAM, __doc__, SUITE).parse_args(argv)
    timer = Timer(args.device, QUICK_SECONDS if args.quick else SECONDS)
    make_cases = partial(cases, args.device, args.quick, timer)
    return run(PROGRAM, SUITE, args, lambda recorder, console: make_cases(), show)


def curves(measured: Measured) -> Curves:
    """Medians by size, of every quantity that was measured."""
    result: Curves = {}
    for key, point in measured:
        if point.values:
            size = "N" if "N" in key else "pools"
            result.setdefault((key["operator"], size, point.unit, point.provider), {})[key[size]] = point.median
    return result


def checked_fit(curve: dict[int, float]) -> Fit | None:
    """Of the sizes that the target speaks of."""
    return fit({size: value for size, value in curve.items() if size <= CHECKED_TOKENS})


def show(console: Console, measured: Measured) -> list[str]:
    """Print a table for tokens and one for pools; return the missed targets."""
    found = curves(measured)
    missed = []
    for axis, title in (
        ("N", f"one pool of N tokens, D = {WIDTH}, float32, budget 0.2"),
        ("pools", f"pools of {POOL_TOKENS} tokens"),
    ):
        sizes = sorted({size for key, curve in found.items() if key[1] == axis for size in curve})
        table = Table(title=title, title_style="bold", title_justify="left", box=box.ROUNDED, header_style="bold")
        table.add_column("operator")
        table.add_column("provider", no_wrap=True)
        for size in sizes:
            table.add_column(f"{size:,}", justify="right", no_wrap=True)
        for name in ("exponent", "faster"):
            table.add_column(name, justify="right", no_wrap=True)
        previous = ""
        for (operator, on, unit, provider), curve in found.items():
            if on != axis:
                continue
            power = checked_fit(curve)
            name = operator if unit == "s" else f"  memory of {operator}"
            faster = "" if provider == OURS or unit != "s" else crossing(found[operator, on, unit, OURS], curve)
            cells = [text(curve[size], unit) if size in curve else "-" for size in sizes]
            exponent = f"{power.exponent:.2f} ± {power.error:.2f}" if power else "-"
            table.add_row("" if name == previous else name, provider, *cells, exponent, faster)
            previous = name
            if power and provider == OURS and operator == "select_tokens" and power.exponent > MOST_EXPONENT:
                grown = f"{name.strip()} grows with {axis} to the power {power.exponent:.2f}"
                missed.append(f"{grown}, expected at most {MOST_EXPONENT}")
        console.print(table)
    for key, point in measured:
        if point.missing:
            console.print(f"{point.provider}, {', '.join(map(str, key.values()))}: {point.missing}", style="dim")
    console.print(
        "Medians of interleaved rounds, every result verified against float64. Exponent: least squares of the "
        f"logarithms up to {CHECKED_TOKENS:,}, with its standard error. Faster: where vs_kernels overtakes the other.",
        style="dim",
    )
    return missed
