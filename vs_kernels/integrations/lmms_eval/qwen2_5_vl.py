"""The Qwen2.5-VL chat model of lmms-eval, with a selector attached."""

from typing import Any

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

from vs_kernels.evaluation.selectors import selector_named
from vs_kernels.integrations.transformers import attach_selector


class Qwen2_5_VLSelected(Qwen2_5_VL):
    """Arguments of ``--model_args`` beyond those of ``qwen2_5_vl``.

    Args:
        selector: directory, file or hub id of a trained selector, or a baseline: random, uniform_grid, token_norm,
            divprune, dart. None: the scorer inside of the checkpoint ``pretrained``, in the published layout.
        budget: retention budget in (0, 1].
        pool: ``"call"``, as published: all images of a call share one budget; or ``"image"``.

    Raises:
        ValueError: a budget or pool that is none, or a checkpoint without a scorer.
    """

    is_simple = False

    def __init__(self, selector: str | None = None, budget: float = 0.2, pool: str = "call", **options: Any):
        super().__init__(**options)
        name = options.get("pretrained") if selector is None else selector
        if name is None:
            raise ValueError("selector: got None without pretrained, expected a selector or a checkpoint with a scorer")
        self.handle = attach_selector(self.model, selector_named(str(name), pool), float(budget))
