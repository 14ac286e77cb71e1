"""A tiny random model of every supported family, and prompts for it as its processor would make them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from vs_kernels.integrations.transformers.families import family_of

HIDDEN_SIZE = 64
PAD, BOS, EOS, IMAGE, VIDEO, START, END = 0, 1, 2, 90, 91, 92, 93
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
Inputs = dict[str, Any]


@dataclass(frozen=True)
class TinyFamily:
    """One family.

    Attributes:
        model_class, config: class and configuration, by their names in transformers and as a function.
        images: (images of every row, generator) -> arguments of ``forward`` with random pixels.
        videos: the same for videos; None where the family has none.
        frames: whether the frames of a video stand apart in the prompt.
        video_placeholder: token id of a visual token in a video.
        recurrent: whether tokens that are masked still move the others, so that they cannot stand for dropped ones.
    """

    model_class: str
    config: Callable[[], Any]
    images: Callable[[Sequence[int], torch.Generator], Inputs]
    videos: Callable[[Sequence[int], torch.Generator], Inputs] | None = None
    frames: int = 0
    video_placeholder: int = VIDEO
    recurrent: bool = False

    def model(self, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = getattr(transformers, self.model_class)._from_config(self.config(), attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    # Wide enough for logits that differ clearly, so that equal tokens mean equal models.
                    parameter.normal_(0, 0.15)
            # Placeholders are not for the model to say.
            model.get_output_embeddings().weight[[IMAGE, VIDEO]] = 0
        return model.eval()

    def prompt(self, model: PreTrainedModel, *rows: list[int | str], side: str = "left", seed: int = 0) -> Inputs:
        """Inputs with one row for every list, in which an int is so many text tokens, and ``"image"``, ``"video"``."""
        generator = torch.Generator().manual_seed(seed)
        makers = {"image": self.images, "video": self.videos}
        inputs: Inputs = {}
        lengths = {}
        for modality, make in makers.items():
            counts = [row.count(modality) for row in rows]
            if make is not None and any(counts):
                family = family_of(model)
                of_modality = make(counts, generator)
                with torch.no_grad():
                    items = family.tokens(family.encode(of_modality)[modality])
                lengths[modality] = iter([len(item) for item in items])
                inputs |= of_modality
        ids, types = [], []
        for row in rows:
            tokens, kinds = [], []
            for segment in row:
                if isinstance(segment, int):
                    piece = torch.randint(3, 80, (segment,), generator=generator).tolist()
                    kind = [0] * segment
                else:
                    piece, kind = self._visual(segment, next(lengths[segment]))
                tokens, kinds = tokens + piece, kinds + kind
            ids.append(tokens)
            types.append(kinds)
        inputs |= {"input_ids": _pad(ids, PAD, side), "attention_mask": _pad([[1] * len(row) for row in ids], 0, side)}
        token_types = _pad(types, 0, side)
        if self.model_class.startswith("Gemma3"):
            inputs["token_type_ids"] = token_types
        elif hasattr(model.model, "get_rope_index"):
            inputs["mm_token_type_ids"] = token_types
        return inputs

    def _visual(self, modality: str, length: int) -> tuple[list[int], list[int]]:
        """Token ids of an image or video, and their types."""
        placeholder, kind = (IMAGE, 1) if modality == "image" else (self.video_placeholder, 2)
        if modality == "image" or not self.frames:
            return [START, *[placeholder] * length, END], [0, *[kind] * length, 0]
        frame = length // self.frames
        ids, kinds = [], []
        for time in range(self.frames):
            ids += [10 + time, START, *[placeholder] * frame, END]
            kinds += [0, 0, *[kind] * frame, 0]
        return ids, kinds


def _pad(rows: list[list[int]], padding: int, side: str) -> Tensor:
    length = max(map(len, rows))
    fills = [[padding] * (length - len(row)) for row in rows]
    joined = [fill + row if side == "left" else row + fill for row, fill in zip(rows, fills, strict=True)]
    return torch.tensor(joined)


def _grids(patch: int) -> dict[str, Callable[[Sequence[int], torch.Generator], Inputs]]:
    """Flattened patches with (time, height, width): images of 16, 24 and 18 tokens, and videos of three times 16."""

    def make(modality: str, shapes: list[list[int]]) -> Callable[[Sequence[int], torch.Generator], Inputs]:
        def of(counts: Sequence[int], generator: torch.Generator) -> Inputs:
            grid = torch.tensor([shapes[i % len(shapes)] for i in range(sum(counts))])
            pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * patch * patch, generator=generator)
            name = "pixel_values" if modality == "image" else "pixel_values_videos"
            return {name: pixels, f"{modality}_grid_thw": grid}

        return of

    images, videos = [[1, 8, 8], [1, 8, 12], [1, 12, 6]], [[3, 8, 8]]
    return {"images": make("image", images), "videos": make("video", videos)}


def _squares(size: int) -> Callable[[Sequence[int], torch.Generator], Inputs]:
    def of(counts: Sequence[int], generator: torch.Generator) -> Inputs:
        return {"pixel_values": torch.randn(sum(counts), 3, size, size, generator=generator)}

    return of


def _squares_of_rows(counts: Sequence[int], generator: torch.Generator) -> Inputs:
    """[B, most images of a row, 3, 32, 32], filled up with black ones."""
    pixels = torch.zeros(len(counts), max(counts), 3, 32, 32)
    for row, count in enumerate(counts):
        pixels[row, :count] = torch.randn(count, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(len(counts), max(counts), 32, 32)}


def _tiles(counts: Sequence[int], generator: torch.Generator) -> Inputs:
    """The whole image, and its halves or quarters: [N, 5, 3, 24, 24], filled up with black ones."""
    shapes = [(40, 20), (30, 48), (48, 40)]
    sizes = torch.tensor([shapes[i % len(shapes)] for i in range(sum(counts))])
    return {"pixel_values": torch.randn(sum(counts), 5, 3, 24, 24, generator=generator), "image_sizes": sizes}


def _tiles_of_rows(counts: Sequence[int], generator: torch.Generator) -> Inputs:
    """Images that share a row are not cut into tiles."""
    return _tiles(counts, generator) | {"batch_num_images": torch.tensor(counts)}


def _clips(counts: Sequence[int], generator: torch.Generator) -> Inputs:
    return {"pixel_values_videos": torch.randn(sum(counts), 3, 3, 24, 24, generator=generator)}


def _sized(counts: Sequence[int], generator: torch.Generator) -> Inputs:
    shapes = [(32, 32), (32, 48), (48, 24)]
    sizes = torch.tensor([shapes[i % len(shapes)] for i in range(sum(counts))])
    return {"pixel_values": torch.randn(sum(counts), 3, 48, 48, generator=generator), "image_sizes": sizes}


def _config(name: str, text: Any, vision: Any, **options: Any) -> Callable[[], Any]:
    """The configuration ``name`` of two, each a dict or the name of a class with a dict."""

    def build(part: Any) -> Any:
        return part if isinstance(part, dict) else getattr(transformers, part[0])(**part[1])

    return lambda: getattr(transformers, name)(text_config=build(text), vision_config=build(vision), **options)


QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
INTERLEAVED = {"rope_parameters": MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GLM_TEXT = {key: value for key, value in TEXT.items() if key != "head_dim"} | {
    "rope_parameters": MROPE | {"partial_rotary_factor": 1.0}
}
GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": HIDDEN_SIZE,
    "image_size": 48,
    "patch_size": 4,
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 94,
    "video_end_token_id": 95,
}
GLM_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": HIDDEN_SIZE,
    "num_position_embeddings": 144,
    "patch_size": 4,
}
SIGLIP = ("SiglipVisionConfig", TOWER | {"vision_use_head": False})

FAMILIES: dict[str, TinyFamily] = {
    "Qwen2-VL": TinyFamily(
        "Qwen2VLForConditionalGeneration",
        _config(
            "Qwen2VLConfig",
            TEXT | {"rope_parameters": MROPE},
            {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN_SIZE, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
            **QWEN_IDS,
        ),
        **_grids(4),
    ),
    "Qwen2.5-VL": TinyFamily(
        "Qwen2_5_VLForConditionalGeneration",
        _config(
            "Qwen2_5_VLConfig",
            TEXT | {"rope_parameters": MROPE},
            {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": HIDDEN_SIZE,
                "fullatt_block_indexes": [1],
                "window_size": 32,
                "patch_size": 4,
            },
            **QWEN_IDS,
        ),
        **_grids(4),
    ),
    "Qwen3-VL": TinyFamily(
        "Qwen3VLForConditionalGeneration",
        _config("Qwen3VLConfig", TEXT | INTERLEAVED, QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]}, **QWEN_IDS),
        frames=3,
        **_grids(4),
    ),
    "Qwen3-VL MoE": TinyFamily(
        "Qwen3VLMoeForConditionalGeneration",
        _config(
            "Qwen3VLMoeConfig",
            TEXT | INTERLEAVED | EXPERTS,
            QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]},
            **QWEN_IDS,
        ),
        frames=3,
        **_grids(4),
    ),
    "Qwen3.5": TinyFamily(
        "Qwen3_5ForConditionalGeneration",
        _config("Qwen3_5Config", TEXT | INTERLEAVED | LINEAR, QWEN3_VISION, **QWEN_IDS),
        frames=3,
        recurrent=True,
        **_grids(4),
    ),
    "Qwen3.5 MoE": TinyFamily(
        "Qwen3_5MoeForConditionalGeneration",
        _config(
            "Qwen3_5MoeConfig",
            TEXT | INTERLEAVED | LINEAR | EXPERTS | {"shared_expert_intermediate_size": 32},
            QWEN3_VISION,
            **QWEN_IDS,
        ),
        frames=3,
        recurrent=True,
        **_grids(4),
    ),
    "GLM-4V": TinyFamily(
        "Glm4vForConditionalGeneration",
        _config("Glm4vConfig", GLM_TEXT, GLM_VISION, **GLM_IDS),
        frames=3,
        video_placeholder=IMAGE,
        **_grids(4),
    ),
    "GLM-4.5V": TinyFamily(
        "Glm4vMoeForConditionalGeneration",
        _config("Glm4vMoeConfig", GLM_TEXT | GLM_EXPERTS, GLM_VISION, **GLM_IDS),
        frames=3,
        video_placeholder=IMAGE,
        **_grids(4),
    ),
    "GLM-4.6V": TinyFamily(
        "Glm46VForConditionalGeneration",
        _config(
            "Glm46VConfig",
            GLM_TEXT | {"model_type": "glm4v_text"},
            GLM_VISION | {"model_type": "glm4v_vision"},
            **GLM_IDS,
        ),
        frames=3,
        video_placeholder=IMAGE,
        **_grids(4),
    ),
    "LLaVA": TinyFamily(
        "LlavaForConditionalGeneration",
        _config(
            "LlavaConfig",
            ("LlamaConfig", TEXT),
            ("CLIPVisionConfig", TOWER | {"image_size": 24}),
            image_token_index=IMAGE,
        ),
        _squares(24),
    ),
    "LLaVA-NeXT": TinyFamily(
        "LlavaNextForConditionalGeneration",
        _config(
            "LlavaNextConfig",
            ("LlamaConfig", TEXT),
            ("CLIPVisionConfig", TOWER | {"image_size": 24}),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        ),
        _tiles,
    ),
    "LLaVA-OneVision": TinyFamily(
        "LlavaOnevisionForConditionalGeneration",
        _config(
            "LlavaOnevisionConfig",
            ("Qwen2Config", TEXT),
            (SIGLIP[0], SIGLIP[1] | {"image_size": 24}),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        ),
        _tiles_of_rows,
        _clips,
    ),
    "InternVL": TinyFamily(
        "InternVLForConditionalGeneration",
        _config(
            "InternVLConfig",
            ("Qwen2Config", TEXT),
            ("InternVLVisionConfig", TOWER | {"image_size": [32, 32], "patch_size": [4, 4]}),
            image_token_id=IMAGE,
        ),
        _squares(32),
    ),
    "SmolVLM": TinyFamily(
        "SmolVLMForConditionalGeneration",
        _config("SmolVLMConfig", ("LlamaConfig", TEXT), TOWER | {"image_size": 32}, image_token_id=IMAGE),
        _squares_of_rows,
    ),
    "Idefics3": TinyFamily(
        "Idefics3ForConditionalGeneration",
        _config("Idefics3Config", ("LlamaConfig", TEXT), TOWER | {"image_size": 32}, image_token_id=IMAGE),
        _squares_of_rows,
    ),
    "Gemma 3": TinyFamily(
        "Gemma3ForConditionalGeneration",
        _config(
            "Gemma3Config",
            TEXT | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
            SIGLIP[1] | {"image_size": 32},
            mm_tokens_per_image=16,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        _squares(32),
    ),
    "Mistral 3": TinyFamily(
        "Mistral3ForConditionalGeneration",
        _config(
            "Mistral3Config",
            ("MistralConfig", TEXT | {"sliding_window": None}),
            ("PixtralVisionConfig", TOWER | {"image_size": 48, "head_dim": 16}),
            image_token_index=IMAGE,
        ),
        _sized,
    ),
}
