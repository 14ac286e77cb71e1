"""Model families: one small adapter each behind one interface."""

import transformers
from transformers import PreTrainedModel

from vs_kernels.integrations.transformers.families.interface import Family
from vs_kernels.integrations.transformers.families.llava import Llava, LlavaNext, LlavaOnevision
from vs_kernels.integrations.transformers.families.qwen_vl import Glm4V, Qwen3VL, Qwen35, QwenVL
from vs_kernels.integrations.transformers.families.tiles import Gemma3, InternVL, SmolVLM

FAMILIES: list[type[Family]] = [
    QwenVL,
    Qwen3VL,
    Qwen35,
    Glm4V,
    Llava,
    LlavaNext,
    LlavaOnevision,
    InternVL,
    Gemma3,
    SmolVLM,
]


def register_family(family: type[Family]) -> type[Family]:
    """Let :func:`attach_selector` know a family; usable as a decorator. The last one that names a class serves it.

    Raises:
        TypeError: not a subclass of :class:`Family`, or one that names no model class.
    """
    if not (isinstance(family, type) and issubclass(family, Family) and family.model_classes):
        raise TypeError(f"family: got {family!r}, expected a subclass of Family that names its model_classes")
    if family not in FAMILIES:
        FAMILIES.append(family)
    return family


def family_of(model: PreTrainedModel) -> Family:
    """The family that ``model`` belongs to.

    Raises:
        TypeError: no family has its class.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for family in reversed(FAMILIES):
        if names.intersection(family.model_classes):
            return family(model)
    supported = ", ".join(name for family in FAMILIES for name in family.model_classes if hasattr(transformers, name))
    raise TypeError(
        f"model: got {type(model).__name__}, expected one of {supported}; docs/adapters.md adds another family"
    )


__all__ = ["FAMILIES", "Family", "family_of", "register_family"]
