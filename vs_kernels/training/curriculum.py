"""The curriculum: what changes while a selector trains, as functions of the step alone.

Nothing here has a state of its own. A run that is interrupted and taken up at a step has the same weights of the loss,
temperatures, budgets and noise from there on as one that was not.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch

from vs_kernels.ops.checks import check_scale, check_share, check_temperature
from vs_kernels.plan import check_budget
from vs_kernels.selector import VisionTokenSelector

SHAPES = ("linear", "exponential", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` over a training.

    Args:
        start, end: values of the first and of the last step.
        shape: ``"linear"``; ``"exponential"``, by a constant factor, for numbers > 0; ``"cosine"``, slow at both ends.

    Raises:
        TypeError, ValueError: another shape, or values that are not finite numbers >= 0 (> 0 for ``"exponential"``).
    """

    start: float
    end: float
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape: got {self.shape!r}, expected one of {SHAPES}")
        for name, value in (("start", self.start), ("end", self.end)):
            check_scale(value, name)
            if self.shape == "exponential" and value == 0:
                raise ValueError(f"{name}: got 0 with an exponential shape, expected a number > 0")

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]."""
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** progress
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress


class Settings(NamedTuple):
    """What a curriculum says about one step, under the names of its schedules; budget None: the selector's own."""

    loss_weight: float
    temperature: float
    scale: float
    noise: float
    dropped_scale: float
    hard_share: float
    budget: float | None


@dataclass(frozen=True)
class Curriculum:
    """The schedules of a training; each is a :class:`Schedule`, or a number that stays.

    Args:
        loss_weight: lambda, of the consistency loss in the composite loss; 0.1 to 2.0 as published.
        temperature: of the soft Top-K.
        scale: of kept tokens, in ``"straight_through_gather"``.
        noise: on the ranking, in the straight-through modes.
        dropped_scale: of dropped tokens, in ``"straight_through_mask"``.
        hard_share: of ``"blend"``.
        budget: retention budget; a pair (low, high): drawn uniformly, anew for every step; None: the selector's own.
        seed: of budgets and noise.

    Raises:
        TypeError, ValueError: a value that the selector would not take.
    """

    loss_weight: Schedule | float = field(default_factory=lambda: Schedule(0.1, 2.0))
    temperature: Schedule | float = 1.0
    scale: Schedule | float = 1.0
    noise: Schedule | float = 0.0
    dropped_scale: Schedule | float = 0.1
    hard_share: Schedule | float = field(default_factory=lambda: Schedule(0.0, 1.0))
    budget: tuple[float, float] | float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {"temperature": lambda value, _: check_temperature(value), "hard_share": check_share}
        for name in SCHEDULED:
            schedule = getattr(self, name)
            ends = (schedule.start, schedule.end) if isinstance(schedule, Schedule) else (schedule,)
            for value in ends:
                checks.get(name, check_scale)(value, name)
        for budget in () if self.budget is None else self._budgets():
            check_budget(budget)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed: got {self.seed!r}, expected an integer >= 0")

    def _budgets(self) -> tuple[float, float]:
        if not isinstance(self.budget, (tuple, list)):
            return self.budget, self.budget  # type: ignore[return-value]
        if len(self.budget) != 2 or self.budget[0] > self.budget[1]:
            raise ValueError(f"budget: got {self.budget!r}, expected a number or a pair (low, high)")
        return self.budget[0], self.budget[1]

    def at(self, step: int, total_steps: int) -> Settings:
        """The settings of ``step``, from 0, of ``total_steps``."""
        progress = min(1.0, step / max(1, total_steps - 1))
        values = {}
        for name in SCHEDULED:
            schedule = getattr(self, name)
            values[name] = schedule.at(progress) if isinstance(schedule, Schedule) else float(schedule)
        budget = None
        if self.budget is not None:
            low, high = self._budgets()
            generator = torch.Generator().manual_seed(self._seed(step, 0))
            budget = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
        return Settings(**values, budget=budget)

    def apply(self, selector: VisionTokenSelector, step: int, total_steps: int, rank: int = 0) -> Settings:
        """Set ``selector`` for a step, the budget excepted, which is that of a call; and return all settings.

        The noise of the step depends on the seed, the step and the ``rank`` of the process, and on nothing else.
        """
        settings = self.at(step, total_steps)
        for name in SCHEDULED:
            if name != "loss_weight":
                setattr(selector, name, getattr(settings, name))
        device = selector.scorer.q_proj.weight.device
        if selector.noise_generator is None or selector.noise_generator.device != device:
            selector.noise_generator = torch.Generator(device)
        selector.noise_generator.manual_seed(self._seed(step, 1 + rank))
        return settings

    def _seed(self, step: int, stream: int) -> int:
        # A prime modulus spreads neighbouring seeds, steps and streams over the range of a generator's seed.
        return ((self.seed * 1_000_003 + step) * 1_000_003 + stream) % (2**61 - 1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Curriculum":
        """A curriculum from plain numbers, pairs and dicts ``{start, end, shape}``, as a YAML file holds them.

        Raises:
            TypeError, ValueError: an unknown name, or a value that does not fit; the message says which.
        """
        known = [entry.name for entry in fields(cls)]
        values: dict[str, Any] = {}
        for name, value in config.items():
            if name not in known:
                raise ValueError(f"curriculum: got {name!r}, expected one of {known}")
            try:
                values[name] = Schedule(**value) if isinstance(value, dict) else value
            except TypeError as error:
                raise ValueError(f"curriculum: {name}: got {value!r}, expected start, end, shape ({error})") from None
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


SCHEDULED = tuple(name for name in Settings._fields if name != "budget")
