"""``vs-kernels train``: a selector trained by transformers' Trainer, as a configuration file says."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.selector import ImportanceScorer, VisionTokenSelector
from vs_kernels.training.callback import CurriculumCallback
from vs_kernels.training.config import TrainConfig
from vs_kernels.training.data import Collator, Conversations
from vs_kernels.training.module import SelectorTraining
from vs_kernels.training.recipes import RECIPES

# As published, but for the batch, which is the machine's to choose: weight decay 0, gradient norm 1, cosine.
PUBLISHED_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a share of all steps
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_train_epochs": 1,
    "report_to": "none",
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": False,  # every parameter of the scorer has a gradient, of text alone 0
}


def load_processor(config: TrainConfig) -> Any:
    return AutoProcessor.from_pretrained(config.model, **config.processor)


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train a selector and return the directory that it is saved in; under torchrun, in all of its processes.

    Args:
        resume: go on from the last checkpoint in the output directory.

    Raises:
        FileNotFoundError, TypeError, ValueError: a configuration, data or a model that does not fit, before any step
            is taken.
    """
    had_group = dist.is_available() and dist.is_initialized()
    recipe = RECIPES[config.recipe]
    data = Conversations(config.data, config.images)
    arguments = TrainingArguments(output_dir=config.output, **PUBLISHED_ARGUMENTS | config.arguments)
    checkpoint = get_last_checkpoint(config.output) if resume and Path(config.output).is_dir() else None
    if resume and checkpoint is None:
        raise ValueError(f"{config.output}: got no checkpoint there, expected one to resume from")
    processor = load_processor(config)
    model = AutoModelForImageTextToText.from_pretrained(config.model, dtype=getattr(torch, config.dtype))
    torch.manual_seed(arguments.seed)
    scorer = ImportanceScorer(model.config.get_text_config().hidden_size, config.hidden_features)
    selector = VisionTokenSelector(scorer, config.budget, recipe.train_mode, config.pool)
    handle = attach_selector(model, selector, train=True)
    training = SelectorTraining(handle, config.schedules())
    trainer = Trainer(
        model=training,
        args=arguments,
        train_dataset=data,
        data_collator=Collator(processor, recipe.end_of_answer),
        callbacks=[CurriculumCallback(training, config.tensorboard)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    del trainer
    if not had_group:
        _leave_group()
    return Path(config.output) / "selector"


def _leave_group() -> None:
    """Take the process group of Trainer down, if there is one.

    Threads of gloo that are still there when the interpreter shuts down abort the process now and then, and torchrun
    calls the finished training a failure. They end with the last reference to the group; the wrapped model has one.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
