"""Make one HTML page, and PNG and SVG charts, of everything in a directory of results.

Where it holds several runs of a suite, the last of them is shown.
"""

from collections.abc import Sequence
from pathlib import Path

from bench.__main__ import described
from bench.commands.all import lacks
from bench.harness import Arguments
from bench.results import SuiteRun, load, write_csv

PROGRAM = "python -m bench report"
PAGE, CHARTS, TABLE = "report.html", "charts", "results.csv"


def main(argv: Sequence[str]) -> int:
    """Exit code: 0; 2 where there are no results."""
    parser = Arguments(PROGRAM, description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("out"), metavar="DIR", help="default: out")
    args = parser.parse_args(argv)
    try:
        runs = {run.suite: run for run in load(args.results)}
    except ValueError as error:
        parser.error(str(error))
    order = ["ops", "prefill", "scaling", "memory", "train", "quality", "serve", "traffic"]
    runs = dict(sorted(runs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))

    import matplotlib

    from bench.report import charts as draw
    from bench.report.canvas import Chart, drawn
    from bench.report.page import page

    made: list[Chart | None] = []
    for suite, makers in {
        "ops": (draw.faster, draw.roofline),
        "prefill": (draw.prefill,),
        "scaling": (draw.scaling, draw.memory),
        "train": (draw.train,),
        "quality": (draw.quality,),
        "serve": (draw.serve,),
        "traffic": (draw.traffic,),
    }.items():
        made += [make(runs[suite]) for make in makers if suite in runs]
    charts = [chart for chart in made if chart is not None]
    folder = args.results / CHARTS
    folder.mkdir(exist_ok=True)
    for chart in charts:
        figure = drawn(chart, narrow=False)
        figure.suptitle(chart.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        with matplotlib.rc_context({"svg.hashsalt": chart.name}):
            figure.savefig(folder / f"{chart.name}.png", dpi=160)
            figure.savefig(folder / f"{chart.name}.svg", metadata={"Date": None})
    (args.results / PAGE).write_text(page(runs, charts, _lacking(runs)))
    write_csv(args.results / TABLE, list(runs.values()))
    print(f"{folder}: {len(charts)} charts")
    print(args.results / PAGE)
    return 0


def _lacking(runs: dict[str, SuiteRun]) -> dict[str, str]:
    missing = [suite for suite in described("suites") if suite not in runs]
    return {suite: f"not measured here: {lacks(suite) or 'not run'}" for suite in missing}
