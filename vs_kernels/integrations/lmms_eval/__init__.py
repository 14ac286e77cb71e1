"""lmms-eval with selection: the model ``qwen2_5_vl_selected``, found by lmms-eval through an entry point.

$ lmms-eval --model qwen2_5_vl_selected --model_args pretrained=...,selector=...,budget=0.2 --tasks ...
"""

from typing import Any


def manifest() -> Any:
    """The entry of the model in the registry of lmms-eval (>= 0.7)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="qwen2_5_vl_selected",
        chat_class_path="vs_kernels.integrations.lmms_eval.qwen2_5_vl.Qwen2_5_VLSelected",
    )
