"""CurriculumCallback: the curriculum in transformers' Trainer."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vs_kernels.training.log import TrainingLog, mean_over_processes, step_record
from vs_kernels.training.module import SelectorTraining


class CurriculumCallback(TrainerCallback):
    """Applies the curriculum at every optimizer step, from ``state.global_step``, so that a resumed run goes on in it.

    Give Trainer the :class:`SelectorTraining` as its model. What Trainer saves is the selector; at the end, and with
    every checkpoint, it is also written as ``VisionTokenSelector.from_pretrained`` reads it, into ``selector/``.

    Args:
        training: the model of the Trainer.
        tensorboard: log into ``output_dir`` for TensorBoard too, and not only as JSON lines.
    """

    def __init__(self, training: SelectorTraining, tensorboard: bool = False):
        self.training = training
        self.tensorboard = tensorboard
        self._log: TrainingLog | None = None
        self._directory = Path()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.training.rank = args.process_index
        self._directory = Path(args.output_dir or ".")
        if state.is_world_process_zero:
            self._log = TrainingLog(self._directory, self.tensorboard)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.training.start_step(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % max(1, int(state.logging_steps)) == 0:
            losses = mean_over_processes(self.training.last_losses)  # all take part, one writes
            if self._log is not None:
                self._log.write(state.global_step, step_record(self.training, losses))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = self._directory / f"checkpoint-{state.global_step}"
        self.training.selector.save_pretrained(checkpoint / "selector", state.is_world_process_zero)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.training.selector.save_pretrained(self._directory / "selector", state.is_world_process_zero)
        if self._log is not None:
            self._log.close()
            self._log = None
