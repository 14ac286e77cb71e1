"""The benchmark harness, and prefill runs of a tiny model."""

import gzip
import json
import time
from functools import partial

import pytest
import torch
from PIL import Image

from bench import __main__ as bench
from bench import harness
from bench.prefill_summary import STAGES, failures, share_failures, summarise, table
from bench.suites import prefill

CPU = torch.device("cpu")


def test_suites_are_listed_with_what_they_do(capsys):
    assert bench.main([]) == 0
    assert "prefill    Prefill of a Qwen2.5-VL model" in capsys.readouterr().out


def test_an_unknown_suite_is_one_line_and_exit_code_2(capsys):
    assert bench.main(["nosuch"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m bench: no suite 'nosuch', expected one of: ") and error.count("\n") == 1


def test_interleaved_rounds_run_every_case_forth_and_back():
    cases = {name: partial(str.upper, name) for name in "abc"}
    assert list(harness.interleaved(cases, 2)) == [
        *[(1, "a", "A"), (1, "b", "B"), (1, "c", "C")],
        *[(2, "c", "C"), (2, "b", "B"), (2, "a", "A")],
    ]


def test_quantiles():
    assert harness.quantiles([3.0]) == {"q20": 3.0, "q50": 3.0, "q80": 3.0}
    assert harness.quantiles([4.0, 1.0, 2.0, 5.0, 3.0, 0.0]) == pytest.approx({"q20": 1.0, "q50": 2.5, "q80": 4.0})


def test_the_clock_tells_wall_from_process_time():
    clock = harness.Clock(CPU)
    start = clock.mark()
    time.sleep(0.05)
    asleep = clock.between(start, clock.mark())
    assert asleep.wall >= 0.05 and asleep.process < 0.04
    start = clock.mark()
    while (busy := clock.between(start, clock.mark())).process < 0.02:
        torch.ones(1000).sum()
    assert busy.wall > 0.005


def test_a_record_is_on_disk_before_the_next_measurement(tmp_path):
    recorder = harness.Recorder(tmp_path / "samples.jsonl")
    recorder.write("sample", seconds=1.5)
    assert _records(tmp_path) == [{"record": "sample", "seconds": 1.5}]


def test_the_environment_can_be_written_as_json():
    facts = json.loads(json.dumps(harness.environment(CPU)))
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0 and facts["cpu"]


def test_peak_memory_is_that_of_this_process():
    assert 2**26 < harness.peak_memory(CPU)["resident"] < 2**40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--budgets 0", "argument --budgets: got '0', expected a number in (0, 1]"),
        ("--budgets 0.5 nan", "argument --budgets: got 'nan', expected a number in (0, 1]"),
        ("--budgets 0.5 --check", "argument --check: it looks at budget 0.2, which is not among --budgets"),
        ("--rounds 0", "argument --rounds: got '0', expected an integer >= 1"),
        ("--image nosuch.jpg", "argument --image: no such file: nosuch.jpg"),
        ("--image broken.jpg", "argument --image: not a readable image: broken.jpg"),
        ("--image cut.png", "argument --image: not a readable image: cut.png"),
        ("--device abacus", "argument --device: no device 'abacus' on this machine, expected one of: cpu"),
        ("--device cuda:99", "argument --device: no device 'cuda:99' on this machine, expected one of: cpu"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("--out file", "argument --out: "),
        ("--model ./nosuch", "argument --model: no such directory: ./nosuch"),
        ("--model empty", "model empty: "),
        ("--selector ./nosuch", "argument --selector: no such directory: ./nosuch"),
        ("--selector empty", "selector: empty: no config.json there"),
        ("--image thread.png", "photo: absolute aspect ratio must be smaller than 200"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    Image.new("RGB", (3000, 10)).save("thread.png")
    Image.effect_noise((64, 64), 50).save("whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])

    def no_model(*_: object) -> None:
        pytest.fail("a model was made")

    monkeypatch.setattr("bench.subject.random_model", no_model)
    with pytest.raises(SystemExit) as stopped:
        prefill.main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m bench prefill: {message}") and error.count("\n") == 1


@pytest.fixture
def tiny(tmp_path):
    """Runs the suite on a tiny model and 64 visual tokens; returns the exit code."""
    from bench.models import TINY

    return lambda *arguments: prefill.main(["--out", str(tmp_path), *arguments], TINY, 64)


def test_a_run_writes_its_records_its_summary_and_its_pictures(tiny, tmp_path, capsys):
    from bench.packing import can_pack

    assert tiny("--rounds", "2", "--budgets", "0.2", "0.5") == 0

    run, unpatched, *samples, end = _records(tmp_path)
    assert (run["record"], unpatched["record"], end["record"]) == ("run", "unpatched", "end")
    assert run["seed"] == 0 and run["dtype"] == "float32" and "tiny" in run["model"]
    assert run["packed"] is can_pack(CPU, torch.float32)
    assert [(sample["round"], sample["budget"]) for sample in samples] == [
        *[(1, 1.0), (1, 0.5), (1, 0.2)],
        *[(2, 0.2), (2, 0.5), (2, 1.0)],
    ]
    text_tokens = 25
    for sample in samples:
        kept = {1.0: 64, 0.5: 32, 0.2: 12}[sample["budget"]]
        assert (sample["visual_tokens"], sample["sequence_length"]) == (kept, kept + text_tokens)
        # Two layers, keys and values, one head of 32 float32 numbers.
        assert sample["kv_cache_bytes"] == sample["sequence_length"] * 2 * 2 * 32 * 4
        assert sample["total_wall_s"] == pytest.approx(sum(sample[f"{s}_wall_s"] for s in ("vit", "selection", "llm")))
        assert all(sample[f"{stage}_wall_s"] > 0 for stage in (*STAGES, "own"))

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["budget"] for row in summary["budgets"]] == [1.0, 0.5, 0.2]
    assert summary["missed"] == [] and summary["peak_memory"]["resident"] > 0
    for row in summary["budgets"]:
        own = [sample["own_wall_s"] for sample in samples if sample["budget"] == row["budget"]]
        assert row["own"] == pytest.approx(sum(own) / 2)
        assert row["added"] == pytest.approx(row["wall"]["selection"] - row["own"])
        assert row["selection_share"] == pytest.approx(row["added"] / row["wall"]["llm"])
    for name in ("speedup.png", "kept_tokens.png"):
        with Image.open(tmp_path / name) as picture:
            low, high = picture.convert("L").getextrema()
            assert min(picture.size) > 300 and low < 60 and high > 250
    printed = capsys.readouterr().out
    assert "Random weights: the times are real, the choice of tokens is not." in printed
    assert "peak memory" in printed and "between ViT and LLM, ms" in printed and "selection adds, ms" in printed


def _tiny_subject():
    from bench.models import TINY
    from bench.photo import read_photo
    from bench.prompt import Request
    from bench.subject import load_subjects

    return load_subjects(read_photo(None), [Request(64)], TINY, None, CPU, torch.float32, "sdpa", 0)[0]


def test_the_models_own_share_is_timed_without_selector_vit_and_llm(monkeypatch):
    from bench import prefill_run
    from bench.prefill_stages import timed_prefill

    subject = _tiny_subject()
    ran = []

    def noted(name, original):
        return lambda *args, **kwargs: ran.append(name) or original(*args, **kwargs)

    def time_between(model, inputs, clock):
        assert model is subject.model and inputs is subject.inputs
        assert "forward" not in vars(model), "a selector is attached"
        before = len(ran)
        own = original(model, inputs, clock)
        shares.append((ran[before:], own))
        return own

    for part in ("visual", "language_model"):
        module = getattr(subject.model.model, part)
        monkeypatch.setattr(module, "forward", noted(part, module.forward))
    shares, original = [], prefill_run.time_between
    monkeypatch.setattr(prefill_run, "time_between", time_between)
    clock, encoded = harness.Clock(CPU), []
    unpatched = timed_prefill(subject.model, subject.inputs, clock)
    samples = list(prefill_run.samples(subject, unpatched, [1.0, 0.2], 1, clock, encoded))
    assert [parts for parts, _ in shares] == [[]] * 3, "at 20 % before the rounds, then once a sample"
    assert [sample.own for sample in samples] == [own for _, own in shares[1:]]
    assert ran.count("visual") == 4 and len(encoded) == 1, "alone, once before the rounds, once a sample"


def test_a_call_that_stops_at_the_llm_leaves_the_model_as_it_was():
    from bench.prefill_stages import encoded_once, time_between, timed_prefill

    subject = _tiny_subject()
    model, clock, encoded = subject.model, harness.Clock(CPU), []
    before = timed_prefill(model, subject.inputs, clock)
    for _ in range(2):
        with encoded_once(model, encoded), encoded_once(model, encoded):
            time_between(model, subject.inputs, clock)
            assert torch.equal(timed_prefill(model, subject.inputs, clock).logits, before.logits)
    assert torch.equal(timed_prefill(model, subject.inputs, clock).logits, before.logits)
    for module in (model.model.visual, model.model.language_model):
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)


def test_a_photo_of_another_shape(tiny, tmp_path):
    Image.linear_gradient("L").resize((300, 100)).save(tmp_path / "wide.png")
    assert tiny("--rounds", "1", "--budgets", "0.5", "--image", str(tmp_path / "wide.png")) == 0
    assert 40 < _records(tmp_path)[2]["visual_tokens"] < 80


@pytest.fixture
def disturb(monkeypatch):
    """Adds to the logits of the calls whose model and number satisfy a condition."""
    from bench import prefill_run

    def disturb(condition):
        numbers = iter(range(1000))
        original = prefill_run.timed_prefill

        def disturbed(model, *arguments):
            prefill = original(model, *arguments)
            selecting = "forward" in vars(model) and "pixel_values" in arguments[0]
            return prefill._replace(logits=prefill.logits + 1e-6 * condition(selecting, next(numbers)))

        monkeypatch.setattr(prefill_run, "timed_prefill", disturbed)

    return disturb


def test_a_wrong_result_gives_no_times(tiny, disturb, tmp_path, capsys):
    disturb(lambda selecting, number: selecting)
    assert tiny() == 1
    assert "wrong result, so no times: budget 100% moved the logits" in capsys.readouterr().err
    assert [record["record"] for record in _records(tmp_path)] == ["run", "unpatched"]
    assert not (tmp_path / "summary.json").exists()


def test_a_call_that_a_library_rounded_in_another_order_is_made_again(tiny, disturb, tmp_path, capsys):
    disturb(lambda selecting, number: number == 2)  # after two at 20 %, the first at 100 %
    assert tiny("--rounds", "1", "--budgets", "0.2") == 0
    _, _, full, fifth, _ = _records(tmp_path)
    assert 0 < full["logits_moved"] < 1e-5 and "logits_moved" not in fifth
    assert "both calls were made again and agreed" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_run_keeps_what_was_measured(tiny, tmp_path, monkeypatch, capsys):
    from bench import prefill_run

    calls = iter(range(14))  # four budgets before the rounds, with and without images, then three of a round

    def interrupted(*arguments):
        if next(calls) == 13:
            raise KeyboardInterrupt
        return original(*arguments)

    original = prefill_run.timed_prefill
    monkeypatch.setattr(prefill_run, "timed_prefill", interrupted)
    assert tiny() == 130
    assert "interrupted; the same command goes on after what was measured" in capsys.readouterr().err
    assert [record.get("budget") for record in _records(tmp_path)] == [None, None, 1.0, 0.5, 0.3]


def test_an_interrupted_run_is_taken_up(tiny, tmp_path, monkeypatch, capsys):
    from bench import prefill_run

    def interrupted(*arguments):
        if len(calls) == 11:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original(*arguments)

    calls, original = [], prefill_run.timed_prefill
    monkeypatch.setattr(prefill_run, "timed_prefill", interrupted)
    assert tiny("--rounds", "2", "--budgets", "0.5", "0.2") == 130
    measured = [record for record in _records(tmp_path) if record["record"] == "sample"]
    monkeypatch.undo()
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"record": "sample", "rou')  # as a killed process leaves it
    assert tiny("--rounds", "2", "--budgets", "0.5", "0.2") == 0
    samples = [record for record in _records(tmp_path) if record["record"] == "sample"]
    assert len(measured) == 4 and samples[:4] == measured
    assert all("own_wall_s" in sample and "own_process_s" in sample for sample in samples)
    assert [(sample["round"], sample["budget"]) for sample in samples] == [
        *[(1, 1.0), (1, 0.5), (1, 0.2)],
        *[(2, 0.2), (2, 0.5), (2, 1.0)],
    ]
    assert "took up 5 records" in capsys.readouterr().out

    assert tiny("--rounds", "2", "--budgets", "0.5", "0.2") == 0
    assert "took up" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "modality", "lengths"),
    [
        ("--images 2 --batch 2 --sizes 64", "image", [64] * 4),
        ("--frames 4 --sizes 112x56", "video", [2 * 4 * 2]),
        ("--sizes 36 168x112", "image", [36]),
    ],
)
def test_prompts_of_other_kinds(tiny, tmp_path, options, modality, lengths):
    assert tiny("--rounds", "1", "--budgets", "0.5", "--trace", *options.split()) == 0
    samples = [record for record in _records(tmp_path) if record["record"] == "sample"]
    prompts = list(dict.fromkeys(sample["prompt"] for sample in samples))
    assert len(prompts) == len(options.partition("--sizes ")[2].split())
    first = [sample["visual_tokens"] for sample in samples if sample["prompt"] == prompts[0]]
    assert first == [sum(lengths), sum(length // 2 for length in lengths)]
    with gzip.open(tmp_path / f"trace-{sum(lengths)}-50.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"prefill", "ViT", "LLM"} <= names


def test_long_prompts_have_one_round_in_which_the_vit_runs_once(tiny, tmp_path, capsys):
    assert tiny("--rounds", "2", "--budgets", "0.5", "0.2", "--long", "100") == 0
    samples = [record for record in _records(tmp_path) if record["record"] == "sample"]
    of_long = [sample for sample in samples if sample["prompt"] == "100 visual tokens"]
    assert len(samples) - len(of_long) == 6 and [sample["budget"] for sample in of_long] == [1.0, 0.2]
    (unpatched,) = (r for r in _records(tmp_path) if r["record"] == "unpatched" and r["prompt"] == "100 visual tokens")
    for sample in of_long:
        assert sample["vit_wall_s"] == unpatched["vit_wall_s"]
        assert sample["total_wall_s"] == pytest.approx(sum(sample[f"{s}_wall_s"] for s in STAGES[:3]))
    assert all((sample["budget"] < 1) == ("alone_wall_s" in sample) for sample in samples)
    assert "of as many tokens of text" in capsys.readouterr().out


def test_a_long_prompt_is_checked_for_its_selection_alone():
    samples = [_sample(1.0, 1050, llm=5.25, selection=0.005), _sample(0.2, 250, llm=4.0, selection=0.11, own=0.01)]
    (sentence,) = share_failures(summarise(samples))
    assert sentence == "at budget 20% selection adds 2.50% of the LLM prefill, expected at most 0.5%"
    assert len(failures(summarise(samples))) == 3


def test_a_video_of_one_still_picture_is_that_picture():
    from bench.prompt import Request, random_model_inputs

    gray = Image.new("RGB", (56, 56), (200, 10, 90))
    image = random_model_inputs(gray, Request(4))
    video = random_model_inputs(gray, Request(4, frames=4))
    assert torch.equal(video["pixel_values_videos"], image["pixel_values"].repeat(2, 1))
    assert video["video_grid_thw"].tolist() == [[2, 4, 4]]


def test_weights_and_selector_from_files(tiny, tmp_path, capsys):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from bench.models import TINY, random_model
    from vs_kernels import ImportanceScorer, VisionTokenSelector

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    model = random_model(TINY, CPU, torch.float32, seed=1)
    model.config.image_token_id = tokenizer.token_to_id("<|image_pad|>")
    model.save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path / "model")
    VisionTokenSelector(ImportanceScorer(64)).save_pretrained(tmp_path / "selector")

    files = ["--model", str(tmp_path / "model"), "--selector", str(tmp_path / "selector")]
    assert tiny("--rounds", "1", "--budgets", "0.2", *files) == 0
    assert "choice of tokens" not in capsys.readouterr().out
    assert [record["visual_tokens"] for record in _records(tmp_path)[2:-1]] == [64, 12]

    VisionTokenSelector(ImportanceScorer(32)).save_pretrained(tmp_path / "selector")
    with pytest.raises(SystemExit) as stopped:
        tiny(*files)
    assert stopped.value.code == 2
    assert "got a scorer of tokens with 32 features, expected 64" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linear_layers_compute_the_same(dtype):
    from bench.models import TINY, random_model
    from bench.packing import PackedLinear, can_pack, pack_linear_layers

    if not can_pack(CPU, dtype):
        pytest.skip("this processor or build of PyTorch has no packed linear layers in this dtype")
    model = random_model(TINY, CPU, dtype, seed=1)
    ids = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        layers = sum(type(module) is torch.nn.Linear for module in model.model.modules())
        pack_linear_layers(model.model)
        logits = model(input_ids=ids).logits
    assert sum(type(module) is PackedLinear for module in model.model.modules()) == layers > 10
    assert not any(type(module) is torch.nn.Linear for module in model.model.modules())
    torch.testing.assert_close(logits, expected, atol=1e-5 if dtype == torch.float32 else 5e-2, rtol=0)


def test_a_model_can_be_left_unpacked(tiny, tmp_path, capsys):
    assert tiny("--rounds", "1", "--budgets", "0.2", "--no-packing") == 0
    assert _records(tmp_path)[0]["packed"] is False
    assert "packed" not in capsys.readouterr().out


def _sample(
    budget: float, length: int, *, llm: float, selection: float, vit: float = 2.0, own: float | None = 0.0
) -> dict:
    """A sample as a run records it, of 1,000 visual tokens and 50 of text."""
    wall = {"vit": vit, "selection": selection, "llm": llm, "total": vit + selection + llm}
    times = {f"{stage}_{kind}_s": value for stage, value in wall.items() for kind in ("wall", "process")}
    tokens = {"visual_tokens": length - 50, "sequence_length": length, "kv_cache_bytes": length * 1000}
    if own is not None:
        times |= {"own_wall_s": own, "own_process_s": own}
    return {"budget": budget, **tokens, **times}


def test_the_summary_takes_medians_and_compares_with_the_largest_budget():
    full = [_sample(1.0, 1050, llm=seconds, selection=0.1) for seconds in (9.0, 5.25, 5.25)]
    fifth = [
        _sample(0.2, 250, llm=seconds, selection=0.05, own=own)
        for seconds, own in ((1.25, 0.02), (1.25, 0.03), (0.5, 0.2))
    ]
    base, row = summarise([*fifth, *full])
    assert (base.budget, base.llm_speedup, base.total_speedup, base.llm_ideal) == (1.0, 1.0, 1.0, 1.0)
    assert base.wall["llm"] == 5.25 and row.wall["llm"] == 1.25
    assert row.llm_speedup == pytest.approx(5.25 / 1.25)
    assert row.llm_ideal == pytest.approx(1050 / 250)
    assert row.total_speedup == pytest.approx(7.35 / 3.3)
    assert row.total_ideal == pytest.approx(7.35 / 3.25)
    assert (row.wall["selection"], row.own) == (0.05, 0.03)
    assert row.added == pytest.approx(0.02) and row.selection_share == pytest.approx(0.02 / 1.25)
    assert row.spread == pytest.approx(0.75 / 3.3)


def test_a_slower_vision_encoder_is_no_fault_of_the_selection():
    base = _sample(1.0, 1050, llm=5.25, selection=0.0)
    row = summarise([base, _sample(0.2, 250, llm=1.25, selection=0.0, vit=2.5)])[1]
    assert row.total_speedup == row.total_ideal == pytest.approx(7.25 / 3.75)


@pytest.mark.parametrize(
    ("llm", "selection", "missed"),
    [
        (1.25, 0.005, []),
        (1.40, 0.005, ["LLM prefill is 3.75x faster", "2.13x faster end to end"]),
        (1.25, 0.022, ["selection adds 1.60% of the LLM prefill"]),
        (1.25, 0.008, []),
        (1.25, 0.001, []),
    ],
)
def test_missed_targets_are_named(llm, selection, missed):
    samples = [
        _sample(1.0, 1050, llm=5.25, selection=0.005),
        _sample(0.2, 250, llm=llm, selection=selection, own=0.002),
    ]
    sentences = failures(summarise(samples))
    assert len(sentences) == len(missed)
    assert all(part in sentence for part, sentence in zip(missed, sentences, strict=True))


def test_a_selection_faster_than_the_models_own_share_is_shown_as_it_is():
    samples = [_sample(1.0, 1050, llm=5.0, selection=0.005), _sample(0.2, 250, llm=1.25, selection=0.004, own=0.005)]
    rows = summarise(samples)
    assert rows[1].added == pytest.approx(-0.001) and rows[1].selection_share == pytest.approx(-0.0008)
    printed = _printed(rows)
    assert printed["selection adds, ms"] == ["5.00", "-1.00"]
    assert printed["between ViT and LLM, ms"] == ["5.00", "4.00"]
    assert printed["selection / LLM prefill"] == ["0.10%", "-0.08%"]


def test_records_without_the_models_own_share_say_nothing_of_the_selection():
    samples = [_sample(budget, 250, llm=1.25, selection=0.004, own=None) for budget in (1.0, 0.2)]
    rows = summarise(samples)
    assert rows[1].own is rows[1].added is rows[1].selection_share is None
    assert _printed(rows)["selection adds, ms"] == _printed(rows)["selection / LLM prefill"] == ["-", "-"]
    (sentence,) = share_failures(rows)
    assert "was not measured" in sentence


def _printed(rows) -> dict[str, list[str]]:
    """The lines of the table, by their names."""
    names, *columns = [list(column.cells) for column in table(rows).columns]
    return {name.strip(): list(cells) for name, *cells in zip(names, *columns, strict=True)}


def test_a_run_whose_rounds_differ_too_much_is_not_judged():
    full = [_sample(1.0, 1050, llm=seconds, selection=0.005) for seconds in (5.25, 5.25, 8.0)]
    (sentence,) = failures(summarise([*full, _sample(0.2, 250, llm=1.25, selection=0.005)]))
    assert sentence.startswith("calls at budget 100% differ by 38% between rounds")


def test_check_fails_a_run_that_misses_a_target(tiny, monkeypatch, capsys):
    monkeypatch.setattr(prefill, "failures", lambda rows: [f"{len(rows)} budgets are too slow"])
    assert tiny("--rounds", "1", "--budgets", "0.2", "--check") == 1
    assert "python -m bench prefill: missed target: 64 visual tokens: 2 budgets are too slow" in capsys.readouterr().err


def _records(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
