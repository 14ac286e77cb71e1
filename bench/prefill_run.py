"""The calls of a prefill run, each verified before its time counts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bench.harness import Clock, Seconds, peak_during
from bench.ops_verify import WrongResult
from bench.prefill_stages import Prefill, encoded_once, time_between, timed_prefill
from bench.subject import Subject
from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.plan import SelectionPlan

Result = TypeVar("Result")


class Sample(NamedTuple):
    """One call with a selector.

    Attributes:
        kept: bool [T], which visual tokens of all images stayed.
        moved: how far the logits at budget 1 were from those of the model's first call where both calls, made again,
            agreed bit for bit; 0 where these did.
        own: the model's own share of ``prefill.selection``: what it takes there without selector, measured straight
            after that call, as cold as it.
        alone: the LLM of the same round, without selection, on as many tokens of text: the measured ideal; None where
            nothing was dropped.
        peak_bytes: as :func:`bench.harness.peak_during` tells it, with the output of the ViT that ``own`` starts
            from.
    """

    round: int
    budget: float
    kept: Tensor
    prefill: Prefill
    moved: float
    own: Seconds
    alone: Seconds | None
    peak_bytes: int | None


def samples(
    subject: Subject,
    unpatched: Prefill,
    budgets: Sequence[float],
    rounds: int,
    clock: Clock,
    encoded: list[Any],
    known: Callable[[int, float], bool] = lambda number, budget: False,
) -> Iterator[Sample]:
    """Call the model with its selector, once a round at each of ``budgets``, and before that once that does not count.

    Args:
        unpatched: the same call of the model without selector.
        encoded: what :func:`encoded_once` keeps of the vision encoder, or an empty list.
        known: whether the sample of a round and budget was measured before, and is left out.

    Raises:
        WrongResult: a wrong number of tokens, logits that are not finite, or at budget 1, twice, not those of the model
            alone.
    """
    handle = attach_selector(subject.model, subject.selector)

    def prefill_at(budget: float) -> Prefill:
        handle.budget = budget
        return timed_prefill(subject.model, subject.inputs, clock)

    def without_selector(measure: Callable[..., Result]) -> Result:
        nonlocal handle
        handle.detach()
        result = measure(subject.model, subject.inputs, clock)
        handle = attach_selector(subject.model, subject.selector)
        return result

    def call(budget: float) -> tuple[Tensor, Prefill, float, Seconds, Seconds | None, int | None]:
        prefill, peak = peak_during(clock.device, lambda: prefill_at(budget))
        selection = handle.last_selection[subject.request.modality]
        kept = _mask(selection.indices, sum(subject.lengths))
        with encoded_once(subject.model, encoded):
            own = without_selector(time_between)
        _verify(subject, budget, kept, prefill, unpatched)
        moved = _moved(prefill, unpatched) if budget == 1.0 else 0.0
        if moved:
            # A library under the model may have rounded one of the two in another order: a second call of both tells.
            alone = without_selector(timed_prefill)
            if again := _moved(prefill_at(budget), alone):
                raise WrongResult(
                    f"budget 100% moved the logits by up to {again:.3g}, expected those of the model alone"
                )
        if prefill.sequence_length == unpatched.sequence_length:
            return kept, prefill, moved, own, None, peak
        return kept, prefill, moved, own, timed_prefill(subject.model, _text(subject, prefill), clock).llm, peak

    wanted = [
        (number, budget)
        for number in range(1, rounds + 1)
        for budget in list(budgets)[:: 1 if number % 2 else -1]
        if not known(number, budget)
    ]
    try:
        with encoded_once(subject.model, encoded):
            for budget in dict.fromkeys(budget for _, budget in wanted if budget != 1.0):
                call(budget)  # shapes that no call had yet
        for number, budget in wanted:
            yield Sample(number, budget, *call(budget))
    finally:
        handle.detach()


def _text(subject: Subject, prefill: Prefill) -> dict[str, Tensor]:
    """A prompt of text as long as that of ``prefill``."""
    first = subject.inputs["input_ids"][:, :1]
    ids = first.expand(-1, prefill.sequence_length).contiguous()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _mask(indices: Tensor | None, tokens: int) -> Tensor:
    mask = torch.full((tokens,), indices is None)
    if indices is not None:
        mask[indices.cpu()] = True
    return mask


def _verify(subject: Subject, budget: float, kept: Tensor, prefill: Prefill, unpatched: Prefill) -> None:
    plan = SelectionPlan.from_budget(subject.lengths, budget)
    length = unpatched.sequence_length - (plan.total_tokens - plan.total_kept) // subject.request.batch
    if int(kept.sum()) != plan.total_kept:
        raise WrongResult(f"budget {budget:.0%} kept {int(kept.sum())} visual tokens, expected {plan.total_kept}")
    if prefill.sequence_length != length:
        raise WrongResult(f"budget {budget:.0%} made a sequence of {prefill.sequence_length}, expected {length}")
    if not prefill.logits.isfinite().all():
        raise WrongResult(f"budget {budget:.0%} gave logits that are not finite")


def _moved(prefill: Prefill, other: Prefill) -> float:
    """The largest difference of the logits; 0 where they are bit for bit the same."""
    return 0.0 if torch.equal(prefill.logits, other.logits) else (prefill.logits - other.logits).abs().max().item()
