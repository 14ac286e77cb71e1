"""One self-contained HTML page of a result: no network, light and dark, desktop and phone."""

import html
from collections.abc import Mapping, Sequence

from bench.ops_summary import UNDISTURBED
from bench.points import text
from bench.report.canvas import Chart, inline_svg
from bench.report.glance import Tile, tiles
from bench.results import SuiteRun, series

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1f2933; --muted: #616e7c; --faint: #e4e7eb;
  --ours: #d9480f; --theirs: #52667a; --third: #2563eb; --fourth: #0f766e;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1d232a; --ink: #e8ebee; --muted: #a0abb7;
  --faint: #333c46; --ours: #ff8a4c; --theirs: #93a5b8; --third: #7aa7ff; --fourth: #4fc7b8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans); }
main { max-width: 880px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 21px; line-height: 1.3; margin: 52px 0 6px; }
p { margin: 6px 0; } .muted, figcaption { color: var(--muted); font-size: 14px; }
.warning { border-left: 3px solid var(--ours); padding-left: 12px; font-size: 14px; }
a { color: var(--third); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 28px 0 0; }
.tile { background: var(--card); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 27px; line-height: 1.25; color: var(--ours); }
.tile span { font-size: 14px; } .tile small { display: block; color: var(--muted); font-size: 12.5px; margin-top: 4px; }
figure { margin: 10px 0 0; } figure svg { display: block; width: 100%; height: auto; overflow: visible; }
svg.narrow { display: none !important; }
@media (max-width: 620px) { main { padding: 24px 16px 48px; } h1 { font-size: 25px; } h2 { margin-top: 40px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: 12px 12px; } .tile b { font-size: 23px; }
  svg.wide { display: none !important; } svg.narrow { display: block !important; } }
details { margin: 10px 0; border-top: 1px solid var(--faint); padding-top: 10px; } summary { cursor: pointer; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { white-space: normal; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; overflow-x: auto; font-size: 13px; }
"""


def page(runs: Mapping[str, SuiteRun], charts: Sequence[Chart], lacking: Mapping[str, str]) -> str:
    """The page.

    Args:
        runs: by suite.
        charts: in their order.
        lacking: suites that are not shown, and why.
    """
    facts = next(iter(runs.values())).facts
    machine = f"{facts['cpu']}, {facts['threads']} threads, {facts['memory_gib']} GiB; device {facts['device']}"
    versions = f"torch {facts['torch']}, Python {facts['python']}, CPU kernels: {facts['cpu_kernels']}"
    body = [
        "<h1>vs_kernels, measured</h1>",
        f'<p class="muted">{_text(machine)}. {_text(versions)}. Commit {_text(facts["commit"])}.</p>',
        _disturbance(runs),
        _tiles(tiles(runs)),
    ]
    for chart in charts:
        body.append(f"<h2>{_text(chart.title)}</h2><figure>{inline_svg(chart, False)}{inline_svg(chart, True)}")
        body.append(f"<figcaption>{_text(chart.caption)}</figcaption></figure>")
    if "serve" in lacking:
        body.append(f"<h2>A server under load</h2><p>{_text(lacking['serve'])}.</p>")
    body.append(_gpu_note(runs))
    body += ["<h2>Every number</h2>", *(_numbers(run) for run in runs.values()), _missing(runs, lacking)]
    body += ["<h2>Machine, versions, commands</h2>", _facts(runs), _commands()]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vs_kernels, measured</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _tiles(shown: Sequence[Tile]) -> str:
    cells = (
        f'<div class="tile"><b>{_text(tile.figure)}</b><span>{_text(tile.what)}</span>'
        f"<small>{_text(tile.detail)}</small></div>"
        for tile in shown
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _disturbance(runs: Mapping[str, SuiteRun]) -> str:
    """A sentence where other programs took a part of the machine from the suite ``ops``, which looks for that."""
    rows = [row for row in runs["ops"].of("row") if "cores" in row] if "ops" in runs else []
    asked = min(runs["ops"].facts["threads"], runs["ops"].facts.get("cores", 1)) if rows else 0
    disturbed = [row["cores"] for row in rows if row["cores"] < UNDISTURBED * asked]
    if not disturbed:
        return ""
    return (
        f'<p class="warning">Other programs disturbed {len(disturbed)} of {len(rows)} rows of the suite ops: work for '
        f"{asked} threads got as little as {min(disturbed):.1f} cores. Ratios were measured side by side; times, and "
        "what needs both cores, are worse than on a quiet machine.</p>"
    )


def _gpu_note(runs: Mapping[str, SuiteRun]) -> str:
    on_gpu = [suite for suite, run in runs.items() if run.facts["device"] != "cpu"]
    if on_gpu:
        return ""
    return (
        "<h2>Times on a GPU: not measured here</h2><p>This result is of a machine without a GPU. What stands here "
        "about GPUs is counted (launches, bytes, registers) or computed from a data sheet, and says so. With a GPU: "
        "<code>vs-kernels verify</code>, then <code>python -m bench ops --device cuda</code>. Floors computed for an "
        "H100 (3.35 TB/s), bfloat16, D = 3,584, budget 0.2, µs:</p>"
        + _table(
            ["N", "definition", "collapsed, one / two reads of the tokens", "gather", "scatter of the backward"],
            [
                ["1,024", "40", "9.9 / 12.1", "0.9", "2.6"],
                ["4,096", "239", "16.4 / 25.2", "3.5", "10.5"],
                ["16,384", "2,231", "42.7 / 77.8", "14", "42"],
                ["65,536", "29,309", "148 / 288", "56", "168"],
            ],
            numbers=(0, 1, 2, 3, 4),
        )
    )


def _numbers(run: SuiteRun) -> str:
    rows = []
    for one in series(run):
        if not one.values:
            continue
        spread = (min(one.values), max(one.values))
        value = text(one.median, one.unit) if one.unit in ("s", "bytes") else f"{one.median:,.4g} {one.unit}"
        reach = f"{text(spread[0], 's')} … {text(spread[1], 's')}" if one.unit == "s" else ""
        rows.append([one.case, one.provider, value, reach, str(len(one.values))])
    head = ["case", "provider", "median", "least … most", "samples"]
    table = _table(head, rows, numbers=(2, 3, 4))
    part = "" if run.whole else ", interrupted"
    return f"<details><summary>{_text(run.suite)}: {len(rows)} series{part}</summary>{table}</details>"


def _missing(runs: Mapping[str, SuiteRun], lacking: Mapping[str, str]) -> str:
    rows = [[suite, "", "", reason] for suite, reason in lacking.items()]
    for run in runs.values():
        rows += [[one.suite, one.case, one.provider, one.missing] for one in series(run) if one.missing]
    if not rows:
        return ""
    table = _table(["suite", "case", "provider", "why"], rows)
    return f"<details><summary>missing: {len(rows)}, with the reasons</summary>{table}</details>"


def _facts(runs: Mapping[str, SuiteRun]) -> str:
    rows = [
        [suite, str(name), str(value)]
        for suite, run in runs.items()
        for name, value in run.facts.items()
        if name not in ("record", "suite")
    ]
    return f"<details><summary>what the runs depend on</summary>{_table(['suite', 'fact', 'value'], rows)}</details>"


def _commands() -> str:
    return (
        "<p>The same on your machine, from a checkout:</p><pre># 10 to 15 minutes, then this page\nmake bench\n"
        "# every size and repetition\nmake bench-full\n"
        "# which changes are beyond noise\npython -m bench compare bench/results out</pre>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numbers else ''}>{_text(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{lines}</tbody></table></div>'
