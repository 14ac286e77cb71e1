"""Where the setting reaches vLLM: the place at which it completes its configuration for a model."""

import functools
from collections.abc import Callable
from typing import Any

from packaging.specifiers import SpecifierSet
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from vs_kernels.integrations.vllm import ARCHITECTURES, SUPPORTED_VLLM, vllm_version
from vs_kernels.integrations.vllm.settings import SETTING, ServingSettings

PREFIX = "VsKernels"


def install() -> None:
    """Register the architectures, and read the setting whenever vLLM completes a configuration."""
    for architecture, location in ARCHITECTURES.items():
        ModelRegistry.register_model(PREFIX + architecture, location)
    original = VllmConfig.try_verify_and_update_config
    if not hasattr(original, SETTING):
        VllmConfig.try_verify_and_update_config = _reading_setting(original)
    if current_platform.is_cpu() and _version_is_supported():
        from vs_kernels.integrations.vllm import cpu_runner

        cpu_runner.install()


def _reading_setting(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def complete(config: Any) -> None:
        original(config)
        extra = config.additional_config
        if isinstance(extra, dict) and SETTING in extra:
            switch_on(config, extra[SETTING])

    setattr(complete, SETTING, True)
    return complete


def switch_on(config: Any, given: Any) -> None:
    """Let the model of a ``VllmConfig`` select its visual tokens.

    Raises:
        TypeError, ValueError, FileNotFoundError: a version of vLLM, a model or a setting that does not go with it.
    """
    model = config.model_config
    # A drafter of speculative decoding reads the embeddings that the model made.
    if model is None or model.runner_type == "draft" or hasattr(model.hf_config, SETTING):
        return
    if not _version_is_supported():
        raise ValueError(f"{SETTING}: got vLLM {vllm_version()}, expected {SUPPORTED_VLLM}")
    if model.architecture not in ARCHITECTURES:
        raise ValueError(f"{SETTING}: got a model {model.architecture}, expected one of {sorted(ARCHITECTURES)}")
    multimodal = model.multimodal_config
    if multimodal is None or multimodal.language_model_only:
        raise ValueError(f"{SETTING}: got a model that reads text alone, expected one with its vision encoder")
    if multimodal.is_multimodal_pruning_enabled():
        raise ValueError(
            f"video_pruning_rate: got {multimodal.video_pruning_rate} with {SETTING}, expected one of the two"
        )
    if "budget" in (multimodal.mm_processor_kwargs or {}):
        raise ValueError(f"mm_processor_kwargs: got a budget for all requests, expected it in {SETTING}.budget")
    if config.lora_config is not None and config.lora_config.enable_tower_connector_lora:
        raise ValueError(
            "enable_tower_connector_lora: got True, expected adapters of the language model alone; vLLM counts the "
            "tokens of the encoder by the placeholders of a prompt, of which there are fewer"
        )
    settings = ServingSettings.of(given, model.model, model.hf_text_config.hidden_size)
    # The config of the model goes to every process, in which plugins only know the environment.
    setattr(model.hf_config, SETTING, settings._asdict())
    model.hf_config.architectures = [PREFIX + model.architecture]
    # The switch of the path through which embeddings bring positions; its value is read by vLLM's own methods alone.
    multimodal.video_pruning_rate = 0.5


def _version_is_supported() -> bool:
    return SpecifierSet(SUPPORTED_VLLM).contains(vllm_version(), prereleases=True)
