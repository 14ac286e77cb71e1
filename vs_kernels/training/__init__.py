"""Training of a selector: curriculum, composite loss, recipes, logs, exact resumption.

>>> handle = attach_selector(model, selector, train=True)
>>> training = SelectorTraining(handle, RECIPES["gather"].curriculum)

``vs_kernels.training.callback`` has the curriculum for transformers' Trainer, and is the only part that imports it.
"""

from vs_kernels.training.curriculum import Curriculum, Schedule, Settings
from vs_kernels.training.health import credit_correlation, mask_health, soft_hard_gap
from vs_kernels.training.log import TrainingLog, step_record
from vs_kernels.training.module import SelectorTraining
from vs_kernels.training.recipes import RECIPES, Recipe
from vs_kernels.training.state import load_training, save_training

__all__ = [
    "RECIPES",
    "Curriculum",
    "Recipe",
    "Schedule",
    "SelectorTraining",
    "Settings",
    "TrainingLog",
    "credit_correlation",
    "load_training",
    "mask_health",
    "save_training",
    "soft_hard_gap",
    "step_record",
]
