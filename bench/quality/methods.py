"""Ways to choose tokens: features and a number of tokens to keep -> their places, int64 [n, k] ascending."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.quality.answering import Features
from vs_kernels import SelectionPlan, VisionTokenSelector, topk_indices
from vs_kernels.baselines import DivPrune, TokenNorm, UniformGrid

Method = Callable[[Features, float], Tensor]
RANDOM_SEEDS = (0, 1, 2)


def by_scores(scores: Tensor, budget: float) -> Tensor:
    """The Top-K of scores [n, N] in every picture."""
    plan = SelectionPlan.dense(*scores.shape, budget=budget)
    return topk_indices(scores.contiguous(), plan).view(len(scores), -1) % scores.shape[1]


def oracle(features: Features, budget: float) -> Tensor:
    """The relevant tokens, and random ones where the budget holds more."""
    noise = torch.rand(features.batch.relevant.shape, generator=torch.Generator().manual_seed(0))
    return by_scores(features.batch.relevant + noise, budget)


def random(seed: int) -> Method:
    def choose(features: Features, budget: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return by_scores(torch.rand(features.attention.shape, generator=generator), budget)

    return choose


def attention(features: Features, budget: float) -> Tensor:
    """The tokens that received the most attention in the last block of the vision encoder."""
    return by_scores(features.attention, budget)


def by_selector(selector: torch.nn.Module) -> Method:
    """A trained selector or a baseline of the library."""

    @torch.no_grad()
    def choose(features: Features, budget: float) -> Tensor:
        number, length = features.attention.shape
        return selector(features.tokens, budget=budget).indices.view(number, -1) % length

    return choose


TRAINING_FREE: dict[str, Method] = {
    "uniform grid": by_selector(UniformGrid()),
    "token norm": by_selector(TokenNorm()),
    "attention received": attention,
    "DivPrune": by_selector(DivPrune()),
}


def learned(selector: VisionTokenSelector) -> Method:
    return by_selector(selector.eval())
