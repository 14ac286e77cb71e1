"""What a prefill run measures: a model, a selector and a photo with a question."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from bench.models import Architecture, parameters, pretrained_model, random_model
from bench.prompt import pretrained_inputs, random_model_inputs
from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector


@dataclass(frozen=True)
class Subject:
    """Attributes:
    model, selector: on the device of the run, in its dtype, in eval mode.
    inputs: arguments of the model for one prompt with one photo.
    description: the model in words.
    caveat: what the run cannot show, a sentence; empty with trained weights.
    """

    model: PreTrainedModel
    selector: VisionTokenSelector
    inputs: dict[str, Tensor]
    description: str
    caveat: str

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens in the photo."""
        merge = self.model.config.vision_config.spatial_merge_size
        _, height, width = self.inputs["image_grid_thw"][0].tolist()
        return height // merge, width // merge


def load_subject(
    photo: Image.Image,
    visual_tokens: int,
    model: str | Architecture,
    selector: str | None,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Subject:
    """Put a subject together; the cheap parts first, so that a mistake shows before the weights are read.

    Args:
        photo: an RGB image.
        visual_tokens: number of visual tokens that the photo is resized for.
        model: a directory or hub repository, or the sizes of a model with random weights.
        selector: a directory or hub repository; None: an untrained one.
        device, dtype: of model and selector.
        seed: of everything random.

    Raises:
        OSError: files that cannot be read.
        TypeError, ValueError: parts that do not fit together.
    """
    made_up = isinstance(model, Architecture)
    inputs = random_model_inputs(photo, visual_tokens) if made_up else pretrained_inputs(photo, visual_tokens, model)
    trained = None if selector is None else VisionTokenSelector.from_pretrained(selector)
    network = random_model(model, device, dtype, seed) if made_up else pretrained_model(model, device, dtype)
    if trained is None:
        torch.manual_seed(seed)
        trained = VisionTokenSelector(ImportanceScorer(network.config.get_text_config().hidden_size))
    trained = trained.to(device, dtype).eval()
    attach_selector(network, trained).detach()

    weights = f"random weights, seed {seed}" if made_up else "its own weights"
    llm, vit = (parameters(part) / 1e6 for part in (network.model.language_model, network.model.visual))
    caveat = ""
    if made_up or selector is None:
        what = "Random weights" if made_up else "An untrained selector"
        caveat = f"{what}: the times are real, the choice of tokens is not."
    return Subject(
        model=network,
        selector=trained,
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        description=f"{model.name if made_up else model}: LLM {llm:,.0f} M, ViT {vit:,.0f} M parameters, {weights}",
        caveat=caveat,
    )
