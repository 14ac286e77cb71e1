"""Two processes with half of a batch each learn what one process learns from the whole batch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_training import batch, make_selector
from tiny_models import qwen2_5_vl
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vs_kernels import VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.training import Curriculum, SelectorTraining

WRAPPERS = {"DDP": DistributedDataParallel, "FSDP2": fully_shard}
ROWS, STEPS = 4, 2


def learn(train_mode: str, rows: slice, wrapper: str | None) -> tuple[SelectorTraining, list[Tensor]]:
    """The training after some steps, and the mean loss of each."""
    torch.set_num_threads(1)
    handle = attach_selector(qwen2_5_vl(), make_selector(train_mode), train=True)
    training = SelectorTraining(handle, Curriculum(scale=0.3))
    wrapped = training if wrapper is None else WRAPPERS[wrapper](training)
    optimizer, losses = torch.optim.SGD(training.selector.parameters(), 0.1), []
    for step in range(STEPS):
        training.start_step(step, STEPS)
        inputs = batch(seed=step, rows=ROWS)
        patches = len(inputs["pixel_values"]) // ROWS
        part = {name: value[rows] for name, value in inputs.items() if name != "pixel_values"}
        part["pixel_values"] = inputs["pixel_values"][rows.start * patches : rows.stop * patches]
        loss = wrapped(**part)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return training, losses


def gradients(with_pixels: bool, wrapper: Callable[..., Any] = lambda training: training) -> list[Tensor | None]:
    """Of the scorer's parameters, after a batch with pictures or one of text alone."""
    handle = attach_selector(qwen2_5_vl(), make_selector("straight_through_gather"), train=True)
    training = SelectorTraining(handle, Curriculum(scale=0.3))
    visual = ("pixel_values", "image_grid_thw")
    inputs = {name: value for name, value in batch().items() if with_pixels or name not in visual}
    wrapped = wrapper(training)  # averages the gradients for as long as it lives
    wrapped(**inputs)["loss"].backward()
    return [parameter.grad for parameter in training.selector.parameters()]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for wrapper in WRAPPERS:
        for train_mode in ("soft", "straight_through_gather"):
            training, losses = learn(train_mode, slice(2 * rank, 2 * rank + 2), wrapper)
            for loss in losses:
                dist.all_reduce(loss, dist.ReduceOp.SUM)
            if wrapper == "FSDP2":
                assert all(isinstance(value, DTensor) for value in training.selector.parameters())
            place = Path(folder) / f"{wrapper} {train_mode}"
            training.selector.save_pretrained(place, is_main_process=rank == 0)
            torch.save([loss / 2 for loss in losses], f"{place} losses {rank}")
    torch.save(gradients(with_pixels=rank == 0, wrapper=DistributedDataParallel), f"{folder}/gradients {rank}")
    dist.destroy_process_group()
    # A thread of gloo may let go of the last collective's tensors only now. Where it meets an interpreter that is
    # shutting down it aborts the process, so there is no shutdown: everything is on the disk.
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("train_mode", ["soft", "straight_through_gather"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_learn_what_one_does(folder: Path, wrapper: str, train_mode: str) -> None:
    threads = torch.get_num_threads()
    training, expected = learn(train_mode, slice(0, ROWS), None)
    torch.set_num_threads(threads)
    start = make_selector(train_mode).scorer.q_proj.weight
    saved = VisionTokenSelector.from_pretrained(folder / f"{wrapper} {train_mode}")
    for name, value in training.selector.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert (saved.scorer.q_proj.weight - start).abs().max() > 1e-4
    for rank in range(2):
        losses = torch.load(folder / f"{wrapper} {train_mode} losses {rank}")
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_a_process_with_text_alone_has_gradients_of_zero(folder: Path) -> None:
    for rank in range(2):
        for mean, alone in zip(torch.load(folder / f"gradients {rank}"), gradients(with_pixels=True), strict=True):
            torch.testing.assert_close(mean, alone / 2, rtol=1e-4, atol=1e-7)
