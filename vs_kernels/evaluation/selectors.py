"""A selector by name: a training-free one, or the path or hub id of a trained one."""

from vs_kernels.baselines import Baseline, Dart, DivPrune, Random, TokenNorm, UniformGrid
from vs_kernels.selector import POOLS, VisionTokenSelector

BASELINES: dict[str, type[Baseline]] = {
    "random": Random,
    "uniform_grid": UniformGrid,
    "token_norm": TokenNorm,
    "divprune": DivPrune,
    "dart": Dart,
}


def selector_named(name: str, pool: str = "image") -> VisionTokenSelector | Baseline:
    """The selector in eval mode.

    Args:
        name: one of ``BASELINES``, or what :meth:`VisionTokenSelector.from_pretrained` takes.
        pool: ``"image"`` or ``"call"``.
    """
    if pool not in POOLS:
        raise ValueError(f"pool: got {pool!r}, expected one of {POOLS}")
    selector = BASELINES[name]() if name in BASELINES else VisionTokenSelector.from_pretrained(name)
    selector.pool = pool
    return selector.eval()
