"""Selectors that need no training, called like :class:`VisionTokenSelector`, to compare a trained one with.

>>> selection = DivPrune(budget=0.2)(tokens, lengths)
>>> attach_selector(model, DivPrune(budget=0.2))

None of them allocates an N x N matrix, and none waits for the device.
"""

from vs_kernels.baselines.attention_received import AttentionReceived, attention_received
from vs_kernels.baselines.dart import Dart
from vs_kernels.baselines.divprune import DivPrune
from vs_kernels.baselines.interface import Baseline, ByScore, select_by_scores
from vs_kernels.baselines.mmr import Mmr
from vs_kernels.baselines.random import Random
from vs_kernels.baselines.token_norm import TokenNorm
from vs_kernels.baselines.uniform_grid import UniformGrid
from vs_kernels.baselines.visionzip import VisionZip

__all__ = [
    "AttentionReceived",
    "Baseline",
    "ByScore",
    "Dart",
    "DivPrune",
    "Mmr",
    "Random",
    "TokenNorm",
    "UniformGrid",
    "VisionZip",
    "attention_received",
    "select_by_scores",
]
