"""Recipes: a train mode with the curriculum that goes with it. docs/training.md compares them."""

from typing import NamedTuple

from vs_kernels.training.curriculum import Curriculum, Schedule


class Recipe(NamedTuple):
    """Attributes:
    train_mode: of the selector.
    curriculum: of the training.
    end_of_answer: whether the token that ends an answer is among the labels. On a hard selection that is still poor
        the right thing for a model to say is less, so this one label can teach a selector to drop the evidence.
    """

    train_mode: str
    curriculum: Curriculum
    end_of_answer: bool = True


EXPLORING = Schedule(1.0, 0.2)

RECIPES = {
    "soft": Recipe("soft", Curriculum()),
    "blend": Recipe("blend", Curriculum()),
    "gather": Recipe("straight_through_gather", Curriculum(scale=0.3, noise=EXPLORING), False),
    "score_function": Recipe("score_function", Curriculum(noise=EXPLORING), False),
    "mask": Recipe("straight_through_mask", Curriculum(noise=EXPLORING), False),
}
