"""Logs of a training: JSON lines, and TensorBoard where it is asked for."""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from vs_kernels.training.health import mask_health
from vs_kernels.training.module import SelectorTraining


class TrainingLog:
    """One record for every logged step, on disk before the next step begins.

    Args:
        directory: gets ``training.jsonl``, made if absent; a resumed run adds to it.
        tensorboard: write TensorBoard's event files beside it.

    Raises:
        ModuleNotFoundError: ``tensorboard`` is not installed.
    """

    def __init__(self, directory: str | Path, tensorboard: bool = False):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "training.jsonl").open("a")
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(directory))

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mean_over_processes(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of a step, scalars, averaged over all processes, which must all call this; of one process, its own."""
    if not (dist.is_available() and dist.is_initialized()):
        return losses
    values = torch.stack([*losses.values()])
    dist.all_reduce(values)
    return dict(zip(losses, values / dist.get_world_size(), strict=True))


def step_record(training: SelectorTraining, losses: dict[str, Tensor]) -> dict[str, float]:
    """What to log about a step: its losses, the curriculum's settings and the health of its first selection."""
    record = {name: value.item() for name, value in losses.items()}
    record |= {name: value for name, value in training.settings._asdict().items() if value is not None}
    for selection in list(training.handle.last_selection.values())[:1]:
        record |= mask_health(selection, training.settings.temperature)
    return record
