"""The report of results, and the run of all suites."""

import importlib.util
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from bench.commands import all as all_suites
from bench.commands import report
from bench.harness import Recorder

MACHINE = {
    "cpu": "An <odd> CPU", "threads": 2, "memory_gib": 8, "device": "cpu", "torch": "2.13", "python": "3.11",
    "cpu_kernels": "C++", "commit": "abc",
}  # fmt: skip


def _times(seconds: float) -> dict:
    wall = {"q20": seconds, "q50": seconds, "q80": seconds}
    return {"wall": wall, "wall_s": [seconds] * 3, "samples_per_round": 1}


def _ops(recorder):
    recorder.write("ceilings", most_bytes_per_second=2e10, flops_per_second=9e10)
    for operator, against, theirs in (
        ("select_tokens", "published inference", 2.0), ("importance_scores", "reading as much", 0.02),
        ("gather_tokens", "index_select", 0.03), ("topk_indices", "gone", None),
    ):  # fmt: skip
        recorder.write(
            "row", operator=operator, shape="N=64 float32", against=against, unit="x", ours=_times(0.02),
            theirs=theirs and _times(theirs), figure=theirs and theirs / 0.02, note="", bandwidth=0.5, flops=10**7,
            moved=10**8, their_flops=theirs and 10**9, their_moved=theirs and 10**7,
        )  # fmt: skip


def _scaling(recorder):
    for axis in ("N", "pools"):
        for provider, exponent in (("vs_kernels", 1), ("published", 2)):
            for size in (256, 1024, 4096):
                for unit in ("s", "bytes"):
                    _point(recorder, {"operator": "select_tokens", axis: size}, provider, unit, 1e-6 * size**exponent)
    _point(recorder, {"operator": "select_tokens", "N": 65536}, "published", "s", None, "a matrix of 17 GB")


def _point(recorder, case, provider, unit, value, missing=""):
    values = [] if value is None else [value]
    recorder.write(
        "point", case=case, provider=provider, unit=unit, values=values, per_round=1, control=False, missing=missing
    )


def _train(recorder):
    for recipe, value in (("published soft recipe", 4.0), ("straight-through, gathered", 1.0)):
        for what, unit in (("step", "s"), ("step without ViT", "s"), ("activations", "bytes"), ("peak", "bytes")):
            _point(recorder, {"N": 64}, f"{recipe}: {what}", unit, value)


def _prefill(recorder):
    for budget, length in ((1.0, 100), (0.2, 25)):
        times = {
            f"{stage}_{kind}_s": length / 100
            for stage in ("vit", "selection", "llm", "total")
            for kind in ("wall", "process")
        }
        own = {"own_wall_s": 0.2, "own_process_s": 0.2}
        recorder.write(
            "sample", prompt="64 visual tokens", round=1, budget=budget, visual_tokens=length, sequence_length=length,
            kv_cache_bytes=length, **own, **times | {"total_wall_s": 3 * length / 100},
        )  # fmt: skip


def _traffic(recorder):
    recorder.write(
        "traffic", call="gather_tokens", shape="N=64", launches=1, read={}, written={}, h100_seconds_computed=3e-6
    )


def _quality(recorder):
    for method, accuracy in (("learned", 0.9), ("random", 0.2)):
        for budget in (0.5, 0.1):
            recorder.write("row", task="tiles", method=method, budget=budget, accuracy=accuracy, error=0.01)


def _serve(recorder):
    for server, seconds in (("all tokens", 4.0), ("budget 20%", 2.0)):
        for clients in (1, 4):
            reply = {"first_token_s": 0.5, "total_s": 1.0, "prompt_tokens": 100, "new_tokens": 16}
            recorder.write("load", server=server, concurrency=clients, round=1, seconds=seconds, replies=[reply] * 4)


SUITES = {
    "ops": (_ops, {}), "scaling": (_scaling, {}), "train": (_train, {"visual_tokens": 64}),
    "prefill": (_prefill, {"model": "a model", "dtype": "float32"}), "traffic": (_traffic, {}),
    "quality": (_quality, {"pictures": 50}),
    "serve": (_serve, {"vllm": "0.33", "visual_tokens": 576, "new_tokens": 16}),
}  # fmt: skip


# At budget 0.2, of 0.25 s between ViT and LLM and in the LLM, the model's own share is 0.2 s.
SELECTION = "+20.00%", "on the LLM prefill, by selection", "50,000 µs"


@pytest.fixture
def results(tmp_path):
    for suite, (write, facts) in SUITES.items():
        (tmp_path / suite).mkdir()
        with Recorder(tmp_path / suite / "records.jsonl", {"suite": suite, **MACHINE, **facts}) as recorder:
            write(recorder)
            recorder.finish()
    return tmp_path


class Page(HTMLParser):
    """Notes the tags, and those that were not closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_is_one_page_with_every_chart_in_two_widths(results, capsys):
    assert report.main([str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(results / "report.html")
    text = (results / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    charts = {path.stem for path in (results / "charts").glob("*.svg")}
    assert charts == {"faster", "roofline", "scaling", "memory", "train", "prefill", "gpu", "quality", "serve"}
    assert page.tags.count("svg") == 2 * len(charts)
    assert all(link.startswith("#") for link in page.links), "the page must not need anything from elsewhere"
    assert "url(http" not in text and "@import" not in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert "An &lt;odd&gt; CPU" in text and "<odd>" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    for shown in (
        "100x",
        "N^1.00",
        "not measured here",
        "a matrix of 17 GB",
        "families",
        "var(--ours)",
        "4.0x",
        *SELECTION,
    ):
        assert shown in text
    assert "#d9480f" not in text.partition("</style>")[2], "a colour that does not follow light and dark"
    for name in charts:
        with Image.open(results / "charts" / f"{name}.png") as picture:
            assert picture.convert("L").getextrema()[0] < 120
    assert (results / "results.csv").read_text().count("\n") > 40


def test_records_of_earlier_versions_make_a_report_without_what_they_lack(results):
    records = results / "prefill" / "records.jsonl"
    records.write_text(records.read_text().replace('"own_wall_s": 0.2, "own_process_s": 0.2, ', ""))
    assert "own" not in records.read_text()
    assert report.main([str(results)]) == 0
    text = (results / "report.html").read_text()
    assert "faster LLM prefill at budget 20 %" in text and SELECTION[1] not in text


def test_a_report_of_one_suite_says_what_is_lacking(results, capsys):
    assert report.main([str(results / "train")]) == 0
    text = (results / "train" / "report.html").read_text()
    assert "not measured here: not run" in text
    if importlib.util.find_spec("vllm") is None:
        assert "A server under load</h2><p>not measured here: vllm is not installed" in text


def test_without_results_there_is_no_report(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path)])
    assert stopped.value.code == 2 and "no records of a run in" in capsys.readouterr().err


def test_all_suites_run_once_and_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    codes = {"scaling": [130, 0]}
    ran = []

    def bench(name, *_):
        ran.append(name)
        return codes[name].pop(0) if name in codes else 0

    monkeypatch.setattr(all_suites, "bench", bench)
    arguments = ["--out", str(tmp_path), "--suites", "memory", "scaling", "train"]
    assert all_suites.main(arguments) == 130 and ran == ["memory", "scaling"]
    assert all_suites.main(arguments) == 0 and ran[2:] == ["scaling", "train", "report"]
    assert "memory: done before the interruption" in capsys.readouterr().out


def test_a_suite_that_fails_is_named_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(all_suites, "bench", lambda name, *_: int(name == "memory"))
    assert all_suites.main(["--out", str(tmp_path), "--suites", "memory", "train"]) == 1
    assert "failed: memory; the report lacks them" in capsys.readouterr().err


def test_a_disturbed_run_says_so(results):
    records = results / "ops" / "records.jsonl"
    records.write_text(records.read_text().replace('"note": ""', '"note": "", "cores": 0.7'))
    assert report.main([str(results)]) == 0
    text = (results / "report.html").read_text()
    assert "disturbed 4 of 4 rows of the suite ops: work for 1 threads got as little as 0.7 cores" in text
