"""What the suites have written down, in one form: series of values, for tables, charts and comparisons."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import quantiles, read_records
from bench.serve_load import PLAIN, by_case

SECONDS = "s"
# What tells cases apart that are measured one after the other, and does not distinguish what they measure.
NOT_OF_THE_SERIES = ("round", "recipe", "what")


class Series(NamedTuple):
    """One measured quantity.

    Attributes:
        suite, case, provider: what was measured, and whose.
        unit: of the values: "s" of times, else something that was counted, such as "bytes" or "launches".
        values: seconds of all samples in the order of time, or the one count.
        control: whether no code of this library is in it, so that no commit can change it.
        missing: why there are no values; empty where there are.
    """

    suite: str
    case: str
    provider: str
    unit: str
    values: list[float]
    control: bool = False
    missing: str = ""

    @property
    def median(self) -> float:
        return quantiles(self.values)["q50"]


class SuiteRun(NamedTuple):
    """One file of records: the facts of its run, and all records."""

    suite: str
    path: Path
    facts: dict[str, Any]
    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["record"] == kind]

    @property
    def whole(self) -> bool:
        return bool(self.records) and self.records[-1]["record"] == "end"


def load(path: Path) -> list[SuiteRun]:
    """The runs in a file of records, or in all of a directory and below.

    Raises:
        ValueError: no such file or directory, no records in it, or a damaged file.
    """
    if not path.exists():
        raise ValueError(f"no such file or directory: {path}")
    runs = []
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        records = read_records(file)
        if records and records[0].get("record") == "run" and "suite" in records[0]:
            runs.append(SuiteRun(records[0]["suite"], file, records[0], records))
    if not runs:
        raise ValueError(f"no records of a run in {path}")
    return runs


def series(run: SuiteRun) -> Iterator[Series]:
    """All quantities of a run."""
    yield from FORMS.get(run.suite, _points)(run)


def merged_points(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a run: one for every case, provider and unit, with the values of all its rounds.

    Of a case that was cut off between two points and measured again, the second counts.
    """
    last = {(str(r["case"]), r["provider"], r["unit"]): r for r in records if r["record"] == "point"}
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in last.values():
        case = {name: value for name, value in record["case"].items() if name not in NOT_OF_THE_SERIES}
        key = str(case), record["provider"], record["unit"]
        if key in merged:
            merged[key]["values"] = merged[key]["values"] + record["values"]
        else:
            merged[key] = record | {"case": case}
    return list(merged.values())


def _points(run: SuiteRun) -> Iterator[Series]:
    for record in merged_points(run.records):
        case = ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in record["case"].values())
        provider, unit, values = record["provider"], record["unit"], record["values"]
        yield Series(run.suite, case, provider, unit, values, record["control"], record["missing"])


def _ops(run: SuiteRun) -> Iterator[Series]:
    for record in run.of("row"):
        case = f"{record['operator']}, {record['shape']}"
        for who, whose, provider in (("ours", "our", "vs_kernels"), ("theirs", "their", record["against"])):
            if (times := record[who]) is None:
                yield Series(run.suite, case, provider, SECONDS, [], missing=record["note"] or "not run")
                continue
            control = who == "theirs" and record["unit"] == "x"
            name = f"vs_kernels beside {record['against']}" if who == "ours" else provider
            yield Series(run.suite, case, name, SECONDS, times["wall_s"], control)
            if times := record.get(f"{whose}_graph"):
                graph = f"{name}, graph"
                yield Series(run.suite, case, graph, SECONDS, times["wall_s"], control)
            if peak := record.get(f"{whose}_peak"):
                yield Series(run.suite, case, name, "bytes", [peak], control=control)
    yield from _points(run)


def _prefill(run: SuiteRun) -> Iterator[Series]:
    samples = sorted(run.of("sample"), key=lambda record: record["round"])
    for prompt in dict.fromkeys(record["prompt"] for record in samples):
        of_prompt = [record for record in samples if record["prompt"] == prompt]
        for budget in sorted({record["budget"] for record in of_prompt}, reverse=True):
            chosen = [record for record in of_prompt if record["budget"] == budget]
            case = f"{prompt}, budget {budget:.0%}"
            for stage in ("vit", "selection", "own", "llm", "total"):
                times = [record[f"{stage}_wall_s"] for record in chosen if f"{stage}_wall_s" in record]
                if times:  # earlier versions did not measure "own", what the model alone takes of "selection"
                    yield Series(run.suite, case, stage, SECONDS, times, control=stage in ("vit", "own"))
            yield Series(run.suite, case, "KV cache", "bytes", [chosen[0]["kv_cache_bytes"]])


def _traffic(run: SuiteRun) -> Iterator[Series]:
    for record in run.of("traffic"):
        case = f"{record['call']}, {record['shape']}"
        moved = sum(record["read"].values()) + sum(record["written"].values())
        yield Series(run.suite, case, "vs_kernels", "bytes", [moved])
        yield Series(run.suite, case, "vs_kernels", "launches", [record["launches"]])


def _compile(run: SuiteRun) -> Iterator[Series]:
    largest: dict[str, float] = {}
    for record in run.of("compile"):
        case = f"{record['kernel']} on {record['arch']}"
        largest[case] = max(largest.get(case, 0), record["registers"])
    for case, registers in largest.items():
        yield Series(run.suite, case, "vs_kernels", "registers", [registers])


def _quality(run: SuiteRun) -> Iterator[Series]:
    for record in run.of("row"):
        case = f"{record['task']}, budget {record['budget']:.0%}"
        yield Series(run.suite, case, record["method"], "share of answers", [record["accuracy"]])


def _serve(run: SuiteRun) -> Iterator[Series]:
    for (server, clients), rounds in by_case(run.records).items():
        case = f"{clients} clients"
        control = server == PLAIN
        seconds = [load.seconds / len(load.replies) for load in rounds]
        yield Series(run.suite, case, f"{server}: a request", SECONDS, seconds, control=control)
        first = [load.percentile(50, "first_token_s") for load in rounds]
        yield Series(run.suite, case, f"{server}: first token", SECONDS, first, control=control)
        yield Series(run.suite, case, f"{server}: KV cache of a request", "tokens", [rounds[0].kv_tokens])


def _families(run: SuiteRun) -> Iterator[Series]:
    for record in run.of("cell"):
        yield Series(run.suite, record["cell"], record["family"], "as promised", [float(record["as_promised"])])


FORMS: dict[str, Callable[[SuiteRun], Iterator[Series]]] = {
    "ops": _ops,
    "prefill": _prefill,
    "traffic": _traffic,
    "compile": _compile,
    "families": _families,
    "quality": _quality,
    "serve": _serve,
}
COLUMNS = ("suite", "case", "provider", "unit", "q20", "q50", "q80", "samples", "missing")


def write_csv(path: Path, runs: Sequence[SuiteRun]) -> None:
    """One line for every series: its quantiles in ``unit``."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for run in runs:
            for one in series(run):
                spread = quantiles(one.values).values() if one.values else ("", "", "")
                writer.writerow([*one[:4], *spread, len(one.values), one.missing])
