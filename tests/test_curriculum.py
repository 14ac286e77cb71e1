import pytest
import torch

from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.training import RECIPES, Curriculum, Schedule


def test_schedules_begin_and_end_where_they_say() -> None:
    for shape in ("linear", "exponential", "cosine"):
        schedule = Schedule(2.0, 0.5, shape)
        values = [schedule.at(step / 10) for step in range(11)]
        assert values[0] == 2.0 and values[-1] == pytest.approx(0.5)
        assert values == sorted(values, reverse=True)
    assert Schedule(0.1, 2.0).at(0.5) == pytest.approx(1.05)
    assert Schedule(4.0, 1.0, "exponential").at(0.5) == pytest.approx(2.0)
    assert Schedule(0.0, 1.0, "cosine").at(0.25) == pytest.approx(0.146447, abs=1e-6)


def test_the_published_curriculum_weighs_the_loss_linearly_from_a_tenth_to_two() -> None:
    weights = [RECIPES["soft"].curriculum.at(step, 101).loss_weight for step in range(101)]
    assert weights == pytest.approx([0.1 + 0.019 * step for step in range(101)])


def test_a_drawn_budget_depends_on_seed_and_step_alone() -> None:
    curriculum = Curriculum(budget=(0.1, 0.5))
    budgets = [curriculum.at(step, 200).budget for step in range(200)]
    assert all(0.1 <= budget <= 0.5 for budget in budgets) and len(set(budgets)) == 200
    assert sum(budgets) / 200 == pytest.approx(0.3, abs=0.03)
    assert budgets[::-1] == [curriculum.at(step, 200).budget for step in reversed(range(200))]
    assert budgets[0] != Curriculum(budget=(0.1, 0.5), seed=1).at(0, 200).budget
    assert Curriculum(budget=0.3).at(5, 10).budget == 0.3 and Curriculum().at(5, 10).budget is None


def test_applying_sets_the_selector_and_its_noise() -> None:
    selector = VisionTokenSelector(ImportanceScorer(8), 0.5, "straight_through_gather").train()
    curriculum = Curriculum(scale=0.3, noise=Schedule(1.0, 0.0), temperature=Schedule(2.0, 1.0))
    tokens = torch.randn(40, 8)

    def kept(step: int, rank: int = 0) -> list[int]:
        curriculum.apply(selector, step, 11, rank)
        return selector(tokens).indices.tolist()

    first = kept(0)
    assert (selector.scale, selector.noise, selector.temperature) == (0.3, 1.0, 2.0)
    assert kept(1) != first and kept(0, rank=1) != first and kept(0) == first
    assert kept(10) == selector.eval()(tokens).indices.tolist()  # no noise is left


def test_noise_explores_in_proportion_to_the_scores() -> None:
    """Keeping one of several tokens under Gumbel noise is a draw with the probabilities softmax(scores / noise)."""
    selector = VisionTokenSelector(ImportanceScorer(4), train_mode="straight_through_gather", noise=0.5)
    scores = torch.tensor([0.6, 0.0, -0.4])
    noisy = selector._noisy(scores.repeat(20000)).view(-1, 3)
    drawn = noisy.argmax(dim=1).bincount() / 20000
    torch.testing.assert_close(drawn, torch.softmax(scores / 0.5, dim=0), rtol=0, atol=0.015)


def test_from_config() -> None:
    read = Curriculum.from_config({"noise": {"start": 1, "end": 0.2}, "budget": [0.1, 0.3], "scale": 0.5})
    assert read == Curriculum(noise=Schedule(1, 0.2), budget=(0.1, 0.3), scale=0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule(1.0, 2.0, "step"), ValueError, "shape: got 'step', expected one of"),
        (lambda: Schedule(-1.0, 2.0), ValueError, "start: got -1.0, expected a finite number >= 0"),
        (lambda: Schedule(1.0, 0.0, "exponential"), ValueError, "end: got 0 with an exponential shape"),
        (lambda: Curriculum(temperature=0.0), ValueError, "temperature: got 0.0"),
        (lambda: Curriculum(noise="much"), TypeError, "noise: got str"),
        (
            lambda: Curriculum(hard_share=Schedule(0, 2)),
            ValueError,
            r"hard_share: got 2, expected a number in \[0, 1\]",
        ),
        (lambda: Curriculum(budget=(0.5, 0.1)), ValueError, r"budget: got \(0.5, 0.1\)"),
        (lambda: Curriculum(budget=2.0), ValueError, "budget: got 2.0"),
        (lambda: Curriculum(seed=-1), ValueError, "seed: got -1"),
        (lambda: Curriculum.from_config({"tau": 1.0}), ValueError, "curriculum: got 'tau', expected one of"),
        (lambda: Curriculum.from_config({"noise": {"from": 1}}), ValueError, "curriculum: noise: got"),
    ],
)
def test_errors(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
