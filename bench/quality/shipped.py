"""The weights that are shipped with the benchmark, and where they lie."""

from pathlib import Path

from torch import nn

from bench.quality.backbone import load_backbone
from bench.quality.tasks import Task
from vs_kernels import VisionTokenSelector

WEIGHTS = Path(__file__).parent / "weights"
SEEDS = (0, 1, 2, 3, 4)
DEFAULT = "score function"
SHIPPED_RECIPES = (DEFAULT, "soft")
# The noise on the scores that the default recipe ends with. The soft Top-K at this temperature is about the probability
# of a token to be kept under that noise, so it is the soft selection that this training has seen.
LAST_NOISE = 0.2


def backbone_path(name: str) -> Path:
    return WEIGHTS / f"{name}.safetensors"


def selector_path(task: str, recipe: str, seed: int) -> Path:
    return WEIGHTS / "selectors" / f"{task}-{recipe.replace(' ', '_')}-{seed}"


def shipped_backbone(task: Task) -> nn.Module:
    return load_backbone(task, backbone_path(task.backbone))


def shipped_selectors(task: Task, recipe: str) -> list[VisionTokenSelector]:
    """The selectors of all seeds, float32, in eval mode."""
    return [VisionTokenSelector.from_pretrained(selector_path(task.name, recipe, seed)).float() for seed in SEEDS]
