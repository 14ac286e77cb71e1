"""What a prefill run measures: a model, a selector and photos with a question."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from bench.models import Architecture, parameters, pretrained_model, random_model
from bench.packing import can_pack, pack_linear_layers
from bench.prompt import Request, pretrained_inputs, random_model_inputs
from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector


@dataclass(frozen=True)
class Subject:
    """Attributes:
    model, selector: on the device of the run, in its dtype, in eval mode.
    request: what the prompt holds.
    inputs: arguments of the model for it.
    description: the model in words.
    caveat: what the run cannot show, a sentence; empty with trained weights.
    packed: whether the linear layers' weights were packed once, see :mod:`bench.packing`.
    """

    model: PreTrainedModel
    selector: VisionTokenSelector
    request: Request
    inputs: dict[str, Tensor]
    description: str
    caveat: str
    packed: bool

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """Times, rows and columns of the visual tokens of every image or video."""
        merge = self.model.config.vision_config.spatial_merge_size
        grids = self.inputs[f"{self.request.modality}_grid_thw"].tolist()
        return [(times, height // merge, width // merge) for times, height, width in grids]

    @property
    def lengths(self) -> list[int]:
        """Visual tokens of every image or video."""
        return [times * rows * columns for times, rows, columns in self.grids]


def load_subjects(
    photo: Image.Image,
    requests: list[Request],
    model: str | Architecture,
    selector: str | None,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    seed: int,
    pack: bool = False,
) -> list[Subject]:
    """Put one subject together for every request, all with one model; the cheap parts first, so that a mistake shows
    before the weights are read.

    Args:
        photo: an RGB image.
        requests: what the prompts hold.
        model: a directory or hub repository, or the sizes of a model with random weights.
        selector: a directory or hub repository; None: an untrained one.
        device, dtype: of model and selector.
        attention: the model's implementation, as transformers names it: "sdpa", "flash_attention_2", "eager".
        seed: of everything random.
        pack: the model's linear layers, where device and dtype allow: for inference alone.

    Raises:
        ValueError: a part cannot be had or does not fit the others; one line that names it.
    """
    made_up = isinstance(model, Architecture)
    name = model.name if made_up else model
    with _errors_about("photo" if made_up else f"model {name}"):
        make_inputs = random_model_inputs if made_up else partial(pretrained_inputs, name=name)
        inputs = [make_inputs(photo, request) for request in requests]
    with _errors_about("selector"):
        trained = None if selector is None else VisionTokenSelector.from_pretrained(selector)
    with _errors_about(f"model {name}"):
        if made_up:
            network = random_model(model, device, dtype, seed, attention)
        else:
            network = pretrained_model(model, device, dtype, attention)
    if trained is None:
        torch.manual_seed(seed)
        trained = VisionTokenSelector(ImportanceScorer(network.config.get_text_config().hidden_size))
    trained = trained.to(device, dtype).eval()
    with _errors_about("model and selector"):
        attach_selector(network, trained).detach()

    llm, vit = (parameters(part) / 1e6 for part in (network.model.language_model, network.model.visual))
    packed = pack and can_pack(device, dtype)
    if packed:
        pack_linear_layers(network.model)  # the head reads its weight once for one token, and shares it
    caveat = ""
    if made_up or selector is None:
        what = "Random weights" if made_up else "An untrained selector"
        caveat = f"{what}: the times are real, the choice of tokens is not."
    return [
        Subject(
            model=network,
            selector=trained,
            request=request,
            inputs={name: tensor.to(device) for name, tensor in tensors.items()},
            description=f"{name}{', random weights' if made_up else ''}: LLM {llm:,.0f} M, ViT {vit:,.0f} M parameters",
            caveat=caveat,
            packed=packed,
        )
        for request, tensors in zip(requests, inputs, strict=True)
    ]


@contextmanager
def _errors_about(part: str) -> Iterator[None]:
    """Errors of a part that comes from outside, in one line that names it."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{part}: {str(error).strip().partition(chr(10))[0]}") from error
