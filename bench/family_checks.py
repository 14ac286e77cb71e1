"""What must hold in every cell of the family matrix. Each check raises AssertionError with what is wrong."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from bench.tiny_families import HIDDEN_SIZE, IMAGE, Inputs, TinyFamily
from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.integrations.transformers import SelectorHandle, attach_selector

BUDGETS = (0.5, 0.2)
TOLERANCE = {"rtol": 0, "atol": 1e-5}


class Subject:
    """A tiny model of a family, its selector, and the prompts it can read."""

    def __init__(self, family: TinyFamily, attention: str = "sdpa"):
        self.family = family
        self.model: PreTrainedModel = family.model(attention)
        torch.manual_seed(1)
        self.selector = VisionTokenSelector(ImportanceScorer(HIDDEN_SIZE)).eval()
        for parameter in self.selector.parameters():
            torch.nn.init.normal_(parameter, std=0.1)

    def prompt(self, *rows: list[int | str], side: str = "left") -> Inputs:
        return self.family.prompt(self.model, *rows, side=side)

    def attach(self, budget: float) -> SelectorHandle:
        return attach_selector(self.model, self.selector, budget)


def check_forward(subject: Subject, *rows: list[int | str]) -> None:
    """Logits at budget 1 are those of the model; below, numbers, positions and logits are those of the full prompt."""
    for side in ("left", "right"):
        inputs = subject.prompt(*rows, side=side)
        with torch.no_grad():
            logits = subject.model(**inputs).logits
            with subject.attach(1.0):
                assert torch.equal(subject.model(**inputs).logits, logits), "budget 1.0 changes the logits"
            for budget in BUDGETS:
                _check_compact(subject, inputs, budget)


def check_text_only(subject: Subject) -> None:
    """Text alone is untouched, before and after a call with images; a row without images stays whole."""
    text, images = subject.prompt([9], [5]), subject.prompt([5, "image", 3], [7])
    with torch.no_grad():
        logits, ids = subject.model(**text).logits, subject.model.generate(**text, max_new_tokens=4)
        with subject.attach(0.5):
            assert torch.equal(subject.model(**text).logits, logits), "text alone changes"
            subject.model(**images)
            assert torch.equal(subject.model.generate(**text, max_new_tokens=4), ids), "text after an image changes"
        _check_compact(subject, images, 0.5)


def check_generate(subject: Subject, rows: tuple[list[int | str], ...], **options: Any) -> None:
    """Tokens at budget 1 are those of the model; below, those of generation without a cache, one token at a time."""
    inputs = subject.prompt(*rows)
    options = {"max_new_tokens": 4, "eos_token_id": None} | options
    with torch.no_grad():
        torch.manual_seed(0)
        alone = subject.model.generate(**_fresh(inputs), **options)
        with subject.attach(1.0):
            torch.manual_seed(0)
            same = subject.model.generate(**_fresh(inputs), **options)
        assert torch.equal(same, alone), "budget 1.0 changes the tokens"
        for budget in BUDGETS:
            with subject.attach(budget) as handle:
                torch.manual_seed(0)
                ids = subject.model.generate(**_fresh(inputs), **options)
                length = inputs["input_ids"].shape[1]
                assert torch.equal(ids[:, :length], _repeated(inputs["input_ids"], len(ids))), "the prompt is not there"
                assert handle.last_prompt is not None, "nothing was dropped"
                if options.get("num_beams", 1) == 1:
                    torch.manual_seed(0)
                    expected = _without_cache(
                        subject, inputs, options["max_new_tokens"], bool(options.get("do_sample"))
                    )
                    assert torch.equal(ids[:, length:], expected), f"budget {budget}: other tokens than without a cache"


def check_beams(subject: Subject, rows: tuple[list[int | str], ...]) -> None:
    """Beams of the compact prompt are those of the full one whose mask hides the dropped tokens."""
    check_generate(subject, rows, num_beams=2)
    options = {"num_beams": 2, "max_new_tokens": 4, "eos_token_id": None}
    inputs = subject.prompt(*rows)
    with torch.no_grad(), subject.attach(0.5) as handle:
        ids = subject.model.generate(**_fresh(inputs), **options)
        if subject.family.recurrent:
            expected = subject.model.generate(**_fresh(inputs), **options, use_cache=False)
    if not subject.family.recurrent:
        told = inputs | _hiding_dropped(handle, inputs)
        expected = subject.model.generate(**told, **options)
    assert torch.equal(ids, expected), "other beams than those of the full prompt"


def check_assisted(subject: Subject, row: list[int | str]) -> None:
    """Tokens are those of greedy decoding, with guesses from the prompt and with those of a draft model."""
    check_generate(subject, (row,), prompt_lookup_num_tokens=2)
    check_generate(subject, (row,), assistant_model=subject.family.model(seed=3))


def check_beams_alone(subject: Subject, rows: tuple[list[int | str], ...]) -> None:
    """Beams of the model without a selector do not depend on its cache."""
    inputs, options = subject.prompt(*rows), {"num_beams": 2, "max_new_tokens": 4, "eos_token_id": None}
    ids = subject.model.generate(**_fresh(inputs), **options)
    assert torch.equal(ids, subject.model.generate(**_fresh(inputs), **options, use_cache=False))


def check_cached(subject: Subject, rows: tuple[list[int | str], ...], static: bool) -> None:
    """Logits of decoding steps on a cache equal those of the whole sequence at once."""
    inputs = subject.prompt(*rows)
    for budget in BUDGETS:
        config = subject.model.config.get_text_config()
        cache = StaticCache(config=config, max_cache_len=400) if static else DynamicCache(config=config)
        with torch.no_grad(), subject.attach(budget), _exact_steps(subject):
            logits = subject.model(**inputs, past_key_values=cache, use_cache=True).logits
            full = dict(inputs)
            for _ in range(3):
                token = logits[:, -1:].argmax(-1)
                full = extend(full, token)
                logits = subject.model(
                    input_ids=token, attention_mask=full["attention_mask"], past_key_values=cache
                ).logits
                expected = subject.model(**full).logits[:, -1]
                torch.testing.assert_close(logits[:, -1], expected, **TOLERANCE)
    if static:
        check_generate(subject, rows, cache_implementation="static")


@contextmanager
def _exact_steps(subject: Subject) -> Iterator[None]:
    """While it lasts, a recurrent language model runs in float64, and its recurrence token by token in any sequence.

    It magnifies rounding, and its chunked form, preferred for sequences, rounds otherwise than steps on a cache: in
    float32 their logits differ by up to 1e-4 without a selector.
    """
    if not subject.family.recurrent:
        yield
        return
    parts = subject.model.get_decoder(), subject.model.get_output_embeddings()
    modeling = sys.modules[type(subject.model).__module__]
    experts = subject.model.config.get_text_config()._experts_implementation
    subject.model.set_experts_implementation("eager")  # the others have no float64
    for part in parts:
        part.double()
    try:
        with mock.patch.object(modeling, "torch_chunk_gated_delta_rule", modeling.torch_recurrent_gated_delta_rule):
            yield
    finally:
        for part in parts:
            part.float()
        subject.model.set_experts_implementation(experts)


def check_training(subject: Subject, rows: tuple[list[int | str], ...]) -> None:
    """The loss of labels that skip dropped tokens is finite, and in training reaches the scorer."""
    inputs = subject.prompt(*rows)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    with torch.no_grad():
        alone = subject.model(**inputs, labels=labels).loss
        with subject.attach(1.0):
            assert torch.equal(subject.model(**inputs, labels=labels).loss, alone), "budget 1.0 changes the loss"
    for mode in ("soft", "straight_through_gather", "straight_through_mask"):
        subject.selector.train().train_mode = mode
        try:
            with subject.attach(0.5) as handle:
                (subject.model(**inputs, labels=labels).loss + handle.loss).backward()
        finally:
            subject.selector.eval()
        gradient = subject.selector.scorer.q_proj.weight.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), f"{mode}: no gradient"
        subject.selector.zero_grad()
        subject.model.zero_grad()


def extend(inputs: Inputs, token: Tensor) -> Inputs:
    """Arguments for the sequence with one more text token, int64 [B, 1]."""
    longer = inputs | {"input_ids": torch.cat([inputs["input_ids"], token], 1)}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.zeros_like(token)], 1)
    return longer


def positions_seen(model: PreTrainedModel) -> Any:
    """A context whose value is a list of the ``position_ids`` that the language model is called with."""

    @contextmanager
    def watch() -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        language_model = model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model
        hook = language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        try:
            yield seen
        finally:
            hook.remove()

    return watch()


def _check_compact(subject: Subject, inputs: Inputs, budget: float) -> None:
    model = subject.model
    with subject.attach(budget) as handle, positions_seen(model) as seen:
        logits, selected = model(**inputs, return_selection=True)
        logits, compact = logits.logits, handle.last_prompt
    assert compact is not None, "nothing was dropped"
    keep = _kept_columns(handle, inputs)
    for modality, items in selected.items():
        free = [int(item.scores.isfinite().sum()) for item in items]
        ks = [max(1, int(n * budget)) + len(item.scores) - n for n, item in zip(free, items, strict=True)]
        assert [len(item.indices) for item in items] == ks, f"{modality}: not k tokens of every one"
    assert int((compact.columns >= 0).sum()) == int(keep.sum()), "not the tokens of the text and sum(k) visual ones"
    # What the model itself would give generate() for the full prompt: [4, B, L] with the text row first, or [B, L].
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    positions = positions[1:] if positions.dim() == 3 else positions[None]
    for row, of_row in enumerate(keep):
        k = int(of_row.sum())
        got = seen[0][-len(positions) :, row, compact.length - k :] if seen[0].dim() == 3 else seen[0][row, -k:][None]
        assert torch.equal(got, positions[:, row, of_row]), "a kept token moved"
    if subject.family.recurrent:
        return
    expected = model(**inputs | _hiding_dropped(handle, inputs)).logits
    kept = compact.columns >= 0
    columns = compact.columns.clamp_min(0)[..., None].expand(-1, -1, logits.shape[-1])
    torch.testing.assert_close(logits[kept], expected.gather(1, columns)[kept], **TOLERANCE)


def _kept_columns(handle: SelectorHandle, inputs: Inputs) -> Tensor:
    """bool [B, L]: attended to, and not a dropped placeholder."""
    keep = inputs["attention_mask"].bool()
    for modality, selection in handle.last_selection.items():
        chosen = torch.zeros(selection.plan.total_tokens, dtype=torch.bool)
        chosen[selection.indices] = True
        keep[inputs["input_ids"] == handle.family.placeholders[modality]] = chosen
    return keep


def _hiding_dropped(handle: SelectorHandle, inputs: Inputs) -> Inputs:
    """Arguments that tell the model to leave out the dropped tokens of a full prompt, and to move no other."""
    family = handle.family
    positions = family.language_model_positions(family.positions(family.prepare(inputs)))
    return {"attention_mask": _kept_columns(handle, inputs).long(), "position_ids": positions}


def _without_cache(subject: Subject, inputs: Inputs, steps: int, sample: bool) -> Tensor:
    """int64 [B, s], the likeliest tokens or drawn ones, each from a call with the whole sequence."""
    new = []
    for _ in range(steps):
        logits = subject.model(**inputs, use_cache=False).logits[:, -1]
        if sample:
            # As generate() draws by default: from the 50 likeliest.
            cut = logits.topk(50).values[:, -1:]
            new.append(logits.masked_fill(logits < cut, -torch.inf).softmax(-1).multinomial(1))
        else:
            new.append(logits.argmax(-1, keepdim=True))
        inputs = extend(inputs, new[-1])
    return torch.cat(new, 1)


def _repeated(ids: Tensor, rows: int) -> Tensor:
    return ids.repeat_interleave(rows // len(ids), dim=0)


def _fresh(inputs: Inputs) -> Inputs:
    return dict(inputs)


def error_of(call: Callable[[Subject], object], subject: Subject) -> Exception | None:
    """What the call raises; None where it passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(subject)
        except Exception as error:
            return error
    return None
