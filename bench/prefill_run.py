"""The calls of a prefill run, each verified before its time counts."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.harness import Clock, interleaved
from bench.prefill_stages import Prefill, timed_prefill
from bench.subject import Subject
from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.plan import SelectionPlan


class WrongResult(Exception):
    """A call did not give what it must, so its time is worth nothing."""


class Sample(NamedTuple):
    """One call with a selector: ``kept`` is bool [rows, columns], which tokens of the photo stayed."""

    round: int
    budget: float
    kept: Tensor
    prefill: Prefill


def samples(
    subject: Subject, unpatched: Prefill, budgets: Sequence[float], rounds: int, clock: Clock
) -> Iterator[Sample]:
    """Call the model with its selector, once a round at each of ``budgets``.

    Args:
        unpatched: the same call of the model without selector.

    Raises:
        WrongResult: a wrong number of tokens, logits that are not finite, or at budget 1 not those of ``unpatched``.
    """
    with attach_selector(subject.model, subject.selector) as handle:

        def call(budget: float) -> tuple[Tensor, Prefill]:
            handle.budget = budget
            prefill = timed_prefill(subject.model, subject.inputs, clock)
            kept = _mask(handle.last_selection["image"].indices, subject.grid)
            _verify(budget, kept, prefill, unpatched)
            return kept, prefill

        for number, budget, (kept, prefill) in interleaved({b: partial(call, b) for b in budgets}, rounds):
            yield Sample(number, budget, kept, prefill)


def _mask(indices: Tensor | None, grid: tuple[int, int]) -> Tensor:
    mask = torch.full((grid[0] * grid[1],), indices is None)
    if indices is not None:
        mask[indices.cpu()] = True
    return mask.view(grid)


def _verify(budget: float, kept: Tensor, prefill: Prefill, unpatched: Prefill) -> None:
    plan = SelectionPlan.from_budget([kept.numel()], budget)
    length = unpatched.sequence_length - plan.total_tokens + plan.total_kept
    if int(kept.sum()) != plan.total_kept:
        raise WrongResult(f"budget {budget:.0%} kept {int(kept.sum())} visual tokens, expected {plan.total_kept}")
    if prefill.sequence_length != length:
        raise WrongResult(f"budget {budget:.0%} made a sequence of {prefill.sequence_length}, expected {length}")
    if not prefill.logits.isfinite().all():
        raise WrongResult(f"budget {budget:.0%} gave logits that are not finite")
    if budget == 1.0 and not torch.equal(prefill.logits, unpatched.logits):
        difference = (prefill.logits - unpatched.logits).abs().max().item()
        raise WrongResult(f"budget 100% moved the logits by up to {difference:.3g}, expected those of the model alone")
