"""A repair of vLLM 0.32 and 0.33 on a CPU: its runner never asks the model for positions after the encoder."""

import functools
from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vs_kernels.integrations.vllm.settings import SETTING


def install() -> None:
    """After loading a model, set the switch that the runner of GPUs sets there."""
    original = CPUModelRunner.load_model
    if hasattr(original, SETTING):
        return

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if hasattr(self.model_config.hf_config, SETTING):
            self.is_multimodal_pruning_enabled = True

    setattr(load_model, SETTING, True)
    CPUModelRunner.load_model = load_model
