"""Token selection inside Hugging Face transformers models.

>>> handle = attach_selector(model, selector, budget=0.2)
>>> model.generate(**inputs)  # a fifth of the visual tokens reaches the language model
>>> handle.detach()
"""

import transformers
from packaging.version import Version

MINIMUM_TRANSFORMERS = "5.19"

if Version(transformers.__version__) < Version(MINIMUM_TRANSFORMERS):
    raise ImportError(
        f"vs_kernels.integrations.transformers needs transformers >= {MINIMUM_TRANSFORMERS}, whose models take visual "
        f"features through mm_encoder_outputs; found {transformers.__version__}"
    )

from vs_kernels.integrations.transformers.attach import SelectorHandle, attach_selector  # noqa: E402
from vs_kernels.integrations.transformers.compact_prompt import CompactPrompt  # noqa: E402
from vs_kernels.integrations.transformers.encoder_attention import EncoderAttention  # noqa: E402
from vs_kernels.integrations.transformers.families import Family, register_family  # noqa: E402
from vs_kernels.integrations.transformers.request import ItemSelection  # noqa: E402

__all__ = [
    "CompactPrompt",
    "EncoderAttention",
    "Family",
    "ItemSelection",
    "SelectorHandle",
    "attach_selector",
    "register_family",
]
