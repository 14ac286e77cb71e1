"""Training of a selector inside a frozen transformers model."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import HIDDEN_SIZE, prompt, qwen2_5_vl
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from vs_kernels import ImportanceScorer, Selection, SelectionPlan, VisionTokenSelector, reference, topk_indices
from vs_kernels.baselines import TokenNorm
from vs_kernels.integrations.transformers import SelectorHandle, attach_selector
from vs_kernels.selector import TRAIN_MODES
from vs_kernels.training import (
    RECIPES,
    Curriculum,
    Schedule,
    SelectorTraining,
    TrainingLog,
    credit_correlation,
    load_training,
    mask_health,
    save_training,
    soft_hard_gap,
    step_record,
)
from vs_kernels.training.callback import CurriculumCallback
from vs_kernels.training.module import score_function_loss

IMAGE = ("image", 1, 4, 6)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_selector(train_mode: str = "soft", std: float = 0.1, **options: Any) -> VisionTokenSelector:
    generator = torch.Generator().manual_seed(1)
    selector = VisionTokenSelector(ImportanceScorer(HIDDEN_SIZE, 16), 0.25, train_mode, **options)
    for projection in (selector.scorer.q_proj, selector.scorer.k_proj):
        nn.init.normal_(projection.weight, std=std, generator=generator)
    return selector


def batch(seed: int = 0, rows: int = 2) -> dict[str, Tensor]:
    inputs = prompt(*([[3, IMAGE, 6]] * rows), seed=seed)
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 29, -100)
    return inputs | {"labels": labels}


@pytest.fixture
def model() -> PreTrainedModel:
    return qwen2_5_vl()


def make_training(model: PreTrainedModel, recipe: str = "gather", std: float = 0.1) -> SelectorTraining:
    selector = make_selector(RECIPES[recipe].train_mode, std)
    return SelectorTraining(attach_selector(model, selector, train=True), RECIPES[recipe].curriculum)


def test_attaching_to_train_freezes_the_model_and_detaching_thaws_it(model: PreTrainedModel) -> None:
    model.lm_head.weight.requires_grad_(False)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    handle = attach_selector(model, make_selector().eval(), train=True)
    assert handle.selector.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    handle.detach()
    assert before == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_baseline_has_nothing_to_train(model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="selector: got TokenNorm to train, expected a VisionTokenSelector"):
        attach_selector(model, TokenNorm(), train=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_is_composite_and_reaches_the_scorer_alone(model: PreTrainedModel, recipe: str) -> None:
    training = make_training(model, recipe)
    training.start_step(5, 11)
    losses = training(**batch())
    weight = training.settings.loss_weight
    assert weight == pytest.approx(1.05)
    torch.testing.assert_close(losses["loss"].detach(), losses["answer_loss"] + weight * losses["consistency_loss"])
    losses["loss"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in training.selector.parameters() if parameter.dim() > 1)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_text_alone_teaches_the_scorer_nothing(model: PreTrainedModel, recipe: str) -> None:
    training = make_training(model, recipe)
    training.start_step(5, 11)
    losses = training(**{name: value for name, value in batch().items() if "pixel" not in name and "grid" not in name})
    assert losses["consistency_loss"] == 0 and losses["loss"] == losses["answer_loss"] > 0
    losses["loss"].backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in training.selector.parameters())


def test_in_eval_mode_the_loss_is_that_of_the_hard_selection(model: PreTrainedModel) -> None:
    training = make_training(model).eval()
    with torch.no_grad():
        losses = training(**batch())
        expected = model(**batch()).loss
    assert losses.keys() == {"loss", "answer_loss"}
    assert torch.equal(losses["loss"], expected)
    assert training.handle.last_selection["image"].indices is not None


def test_the_budget_of_a_step_is_the_curriculums(model: PreTrainedModel) -> None:
    handle = attach_selector(model, make_selector("straight_through_gather"), budget=0.5, train=True)
    training = SelectorTraining(handle, Curriculum(budget=0.75))
    training(**batch())
    assert handle.last_selection["image"].plan.ks == (18, 18)
    assert handle.budget == 0.5
    SelectorTraining(handle, Curriculum())(**batch())
    assert handle.last_selection["image"].plan.ks == (12, 12)


def test_only_the_scorer_is_in_a_checkpoint(model: PreTrainedModel) -> None:
    training = make_training(model)
    state = copy.deepcopy(training.state_dict())
    assert state.keys() == training.selector.state_dict().keys()
    other = make_training(qwen2_5_vl(), std=0.2)
    other.load_state_dict(state)
    assert all(torch.equal(value, other.selector.state_dict()[name]) for name, value in state.items())


def scorer_gradient(training: SelectorTraining, inputs: dict[str, Tensor]) -> Tensor:
    losses = training(**inputs)
    return torch.cat(
        [grad.flatten() for grad in torch.autograd.grad(losses["loss"], [*training.selector.parameters()])]
    )


def float64_gradient(model: PreTrainedModel, training: SelectorTraining, inputs: dict[str, Tensor]) -> Tensor:
    """The same gradient in float64, composed of the definitions in ``vs_kernels.reference``."""
    twin = copy.deepcopy(training.selector).double()
    selector, settings = training.selector, training.settings

    class Twin(nn.Module):
        def forward(self, tokens: Tensor, lengths: list[int], *, plan: SelectionPlan) -> Selection:
            return select(tokens, plan)

    def select(tokens: Tensor, plan: SelectionPlan) -> Selection:
        scores = reference.importance_scores(tokens, *twin.scorer.weights(), plan)
        probs = reference.soft_topk(scores, plan, settings.temperature)[0]
        mask = reference.topk_mask(scores.detach(), plan)
        loss = nn.functional.binary_cross_entropy(probs, mask.double())
        if selector.train_mode == "soft":
            factors = probs
        elif selector.train_mode == "blend":
            factors = (1 - settings.hard_share) * probs + settings.hard_share * mask
        elif selector.train_mode == "straight_through_gather":
            # dropped rows have no credit: in the twin they are no part of the graph
            factors = settings.scale * mask + (probs - probs.detach()) * mask
        else:
            factors = torch.where(mask, 1.0, settings.dropped_scale) + probs - probs.detach()
        rows, indices = tokens * factors[:, None], None
        if selector.train_mode == "straight_through_gather":
            indices = mask.nonzero().flatten()
            rows = rows[indices]
        return training.handle.last_selection["image"]._replace(
            tokens=rows, indices=indices, scores=scores.float(), loss=loss, plan=plan
        )

    handle = training.handle
    model.double()
    try:
        handle.selector = Twin()
        handle.selector.budget, handle.selector.pool = selector.budget, selector.pool
        handle.selector.train_mode, handle.selector.hard_share = selector.train_mode, selector.hard_share
        handle.selector.dropped_scale = selector.dropped_scale
        doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        loss = model(**doubled).loss + settings.loss_weight * handle.loss
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, [*twin.parameters()])])
    finally:
        handle.selector = selector
        model.float()


@pytest.mark.parametrize("train_mode", [mode for mode in TRAIN_MODES if mode != "score_function"])
def test_the_gradient_through_the_frozen_model_is_that_of_a_float64_twin(model: PreTrainedModel, train_mode) -> None:
    selector = make_selector(train_mode)
    curriculum = Curriculum(scale=0.3, hard_share=0.4, temperature=0.7, loss_weight=0.5)
    training = SelectorTraining(attach_selector(model, selector, train=True), curriculum)
    actual = scorer_gradient(training, batch())
    expected = float64_gradient(model, training, batch())
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_the_soft_gradient_is_the_slope_of_the_loss(model: PreTrainedModel) -> None:
    """Finite differences along the gradient; the hard mask of the consistency loss stays the same."""
    training = make_training(model, "soft")
    training.settings = training.settings._replace(loss_weight=0.5)
    gradient = scorer_gradient(training, batch())
    direction, losses = gradient / gradient.norm(), []
    for step in (1e-2, -2e-2):
        at = 0
        for parameter in training.selector.parameters():
            size = parameter.numel()
            parameter.data += step * direction[at : at + size].view_as(parameter)
            at += size
        losses.append(training(**batch())["loss"].item())
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_the_score_function_is_the_slope_of_the_expected_loss() -> None:
    """Keeping 2 of 5 tokens costs what they cost; many rows draw, and the slope is known from many more draws."""
    costs, rows = torch.tensor([1.0, -0.5, 0.2, 0.0, -1.0]), 20000
    scores = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.4])

    class Toy(nn.Module):
        """Scores that are parameters, the cost of what is kept as loss."""

        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(scores.clone())
            self.last_selection: dict[str, Any] = {}

        def forward(self, labels: Tensor) -> Tensor:
            plan = SelectionPlan.dense(rows, 5, k=2)
            noisy = self.scores.detach() - torch.empty(rows, 5).exponential_().log()
            indices = topk_indices(noisy, plan)
            selection = Selection(indices, indices, self.scores.expand(rows, 5), None, None, plan)
            self.last_selection = {"image": selection}
            return costs[indices % 5].view(rows, 2).sum(1)

        def row_losses(self, output: Tensor, labels: Tensor) -> Tensor:
            return output

        def token_rows(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
            return {"image": torch.arange(rows).repeat_interleave(5)}

    toy = Toy()
    toy.model = toy.forward
    loss = score_function_loss(toy, 1.0, torch.zeros(rows), {})
    (slope,) = torch.autograd.grad(loss, toy.scores)

    def expected_loss(at: Tensor) -> float:
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        p = at.softmax(0)
        return sum((p[i] * p[j] / (1 - p[i]) * (costs[i] + costs[j])).item() for i, j in pairs)

    assert loss.item() == pytest.approx(expected_loss(scores), abs=0.02)
    steps = 1e-2 * torch.eye(5)
    expected = torch.tensor([(expected_loss(scores + step) - expected_loss(scores - step)) / 2e-2 for step in steps])
    assert torch.cosine_similarity(slope, expected, dim=0) > 0.98


def test_the_score_function_needs_noise(model: PreTrainedModel) -> None:
    handle = attach_selector(model, make_selector("score_function"), train=True)
    with pytest.raises(ValueError, match="noise: got a curriculum with 0 for train_mode 'score_function'"):
        SelectorTraining(handle, Curriculum(noise=Schedule(1.0, 0.0)))


def test_rows_have_their_own_losses(model: PreTrainedModel) -> None:
    with attach_selector(model, make_selector(), train=True) as handle:
        for mode in ("soft", "straight_through_gather"):
            handle.selector.train_mode = mode
            output = model(**batch())
            rows = handle.row_losses(output, batch()["labels"])
            assert rows.shape == (2,) and rows[0] != rows[1]
            torch.testing.assert_close(rows.mean(), output.loss)
        assert handle.token_rows(batch())["image"].tolist() == [0] * 24 + [1] * 24


def test_mask_health() -> None:
    flat = make_selector(std=0.0).train()(torch.randn(40, HIDDEN_SIZE))
    assert mask_health(flat) == {"sharpness": pytest.approx(0.25), "score_spread": 0.0}
    sharp = make_selector(std=5.0).train()(torch.randn(40, HIDDEN_SIZE))
    health = mask_health(sharp)
    assert health["sharpness"] > 0.95
    assert health["score_spread"] == pytest.approx(sharp.scores.std(correction=0).item())


def test_soft_hard_gap_leaves_the_training_as_it_was(model: PreTrainedModel) -> None:
    training = make_training(model)
    gap = soft_hard_gap(training, batch())
    assert gap["soft_hard_gap"] == pytest.approx(gap["hard_answer_loss"] - gap["soft_answer_loss"])
    assert gap["soft_hard_gap"] != 0
    assert training.selector.training and training.selector.train_mode == "straight_through_gather"


def test_credit_agrees_with_leaving_tokens_out_where_the_loss_is_almost_linear(model: PreTrainedModel) -> None:
    """At a small scale of visual tokens, and without the norms that undo it, the first order is the whole effect."""
    for norm in [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]:
        norm.forward = lambda hidden, weight=norm.weight: 0.1 * hidden * weight
    handle = attach_selector(model, make_selector(), train=True)
    assert credit_correlation(handle, batch(), tokens=12) > 0.9
    assert handle.selector.training and isinstance(handle.selector, VisionTokenSelector)
    with pytest.raises(ValueError, match="tokens: got 13, expected from 3 to 12"):
        credit_correlation(handle, batch(), tokens=13)


def optimise(training: SelectorTraining, steps: range, path: Path, total: int = 8) -> None:
    """A plain loop that stops, or goes on, at the first of ``steps``."""
    optimizer = torch.optim.AdamW(training.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(step / total))
    if steps.start:
        assert load_training(path, training, optimizer=optimizer, schedule=schedule) == steps.start
    for step in steps:
        training.start_step(step, total)
        for part in range(2):  # gradient accumulation
            (training(**batch(seed=2 * step + part))["loss"] / 2).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save_training(path, training, steps.stop, optimizer=optimizer, schedule=schedule)


def test_a_plain_loop_resumes_to_the_last_bit(tmp_path: Path) -> None:
    def fresh() -> SelectorTraining:
        handle = attach_selector(qwen2_5_vl(), make_selector("straight_through_gather"), train=True)
        return SelectorTraining(handle, Curriculum(scale=0.3, noise=Schedule(1, 0.2), budget=(0.2, 0.6)))

    whole = fresh()
    optimise(whole, range(8), tmp_path / "whole")
    optimise(fresh(), range(3), tmp_path / "parts")
    resumed = fresh()
    torch.manual_seed(123)
    optimise(resumed, range(3, 8), tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"another curriculum, which differs in \['scale', 'noise', 'budget'\]"):
        load_training(tmp_path / "parts", make_training(qwen2_5_vl(), "soft"))
    with pytest.raises(ValueError, match=r"parts: got \[\], expected \['optimizer', 'schedule'\]"):
        load_training(tmp_path / "parts", fresh())
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        load_training(tmp_path / "nothing", fresh())


def test_gradient_checkpointing_changes_nothing(model: PreTrainedModel) -> None:
    training = make_training(model)
    training.train()
    plain = scorer_gradient(training, batch())
    training.start_step(0, 1)
    training.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(scorer_gradient(training, batch()), plain)


def test_mixed_precision(model: PreTrainedModel) -> None:
    training = make_training(model)
    exact = scorer_gradient(training, batch())
    training.start_step(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scorer_gradient(training, batch())
    assert mixed.dtype == torch.float32
    assert torch.cosine_similarity(mixed, exact, dim=0) > 0.97


class Batches(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return batch(seed=index, rows=1)


def run_trainer(directory: Path, resume: bool = False, stop_after: int | None = None, **options: Any) -> SelectorHandle:
    torch.manual_seed(0)
    training = make_training(qwen2_5_vl())
    arguments = TrainingArguments(
        str(directory), max_steps=6, save_steps=2, logging_steps=1, per_device_train_batch_size=2, learning_rate=1e-3,
        gradient_accumulation_steps=2, report_to="none", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    class Killed(CurriculumCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == stop_after:
                raise KeyboardInterrupt
            super().on_step_begin(args, state, control, **kwargs)

    trainer = Trainer(training, arguments, collate, Batches(), callbacks=[Killed(training)])
    trainer.train(resume_from_checkpoint=str(directory / "checkpoint-2") if resume else None)
    return training.handle


def test_trainer_resumes_to_the_last_bit_and_saves_the_selector(tmp_path: Path) -> None:
    whole = run_trainer(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_trainer(tmp_path / "parts", stop_after=3)
    resumed = run_trainer(tmp_path / "parts", resume=True)
    for name, value in whole.selector.state_dict().items():
        assert torch.equal(value, resumed.selector.state_dict()[name]), name
    saved = VisionTokenSelector.from_pretrained(tmp_path / "parts" / "selector")
    assert torch.equal(saved.scorer.q_proj.weight, whole.selector.scorer.q_proj.weight)
    assert (tmp_path / "whole" / "checkpoint-6" / "model.safetensors").stat().st_size < 20_000
    records = [json.loads(line) for line in (tmp_path / "whole" / "training.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss_weight"] for record in records] == pytest.approx([0.1, 0.48, 0.86, 1.24, 1.62, 2.0])
    assert records[0].keys() > {"loss", "answer_loss", "consistency_loss", "temperature", "sharpness", "score_spread"}


def test_trainer_with_bfloat16_and_gradient_checkpointing(tmp_path: Path) -> None:
    exact = run_trainer(tmp_path / "exact").selector
    options = {"bf16": True, "gradient_checkpointing": True}
    mixed = run_trainer(tmp_path / "mixed", **options, gradient_checkpointing_kwargs={"use_reentrant": False}).selector
    start = make_selector("straight_through_gather").scorer.q_proj.weight
    moves = [(selector.scorer.q_proj.weight - start).detach().flatten() for selector in (exact, mixed)]
    assert moves[1].abs().max() > 1e-4 and not torch.equal(*moves)
    assert torch.cosine_similarity(*moves, dim=0) > 0.8


def test_logs_go_to_tensorboard_too(tmp_path: Path, model: PreTrainedModel) -> None:
    training = make_training(model)
    with TrainingLog(tmp_path, tensorboard=True) as log:
        log.write(1, step_record(training, training(**batch())))
    assert list(tmp_path.glob("events.out.tfevents.*"))
