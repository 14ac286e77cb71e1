"""Attention received in the encoder, against the attention that the eager encoder returns."""

import pytest
import torch

from bench.family_checks import Subject
from bench.tiny_families import FAMILIES
from vs_kernels.baselines import AttentionReceived, VisionZip
from vs_kernels.integrations.transformers import EncoderAttention, attach_selector

ROWS = ([5, "image", 3, "image", 4], [6, "image", 2])


pytestmark = pytest.mark.usefixtures("one_thread")


def test_llava_against_the_attention_of_its_class_token() -> None:
    subject = Subject(FAMILIES["LLaVA"], "eager")
    model, inputs = subject.model, subject.prompt(*ROWS)
    with torch.no_grad():
        attentions = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
        expected = attentions[model.config.vision_feature_layer][:, :, 0, 1:].mean(1).flatten()
        source = EncoderAttention(model)
        with attach_selector(model, AttentionReceived(source), budget=0.2) as handle:
            model(**inputs)
    torch.testing.assert_close(handle.last_selection["image"].scores, expected)


@pytest.mark.parametrize("name", ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Qwen3.5", "GLM-4V"])
def test_qwen_against_each_image_alone(name: str) -> None:
    """Of every image, the query times key of its last layer, computed here in full, averaged over merged patches."""
    subject = Subject(FAMILIES[name], "eager")
    model, inputs = subject.model, subject.prompt(*ROWS)
    probabilities: list[torch.Tensor] = []
    attention = model.model.visual.blocks[-1].attn
    with torch.no_grad():
        source = EncoderAttention(model)
        watch = attention.vs_kernels_watch

        def both(query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
            probabilities.append((scale * query @ key.transpose(2, 3)).softmax(-1).mean((0, 1, 2)))
            watch(query, key, scale)

        attention.vs_kernels_watch = both
        with attach_selector(model, AttentionReceived(source), budget=0.2) as handle:
            model(**inputs)
        order = torch.arange(16 + 24 + 18)
        if name == "Qwen2.5-VL":  # windows of 4 x 4 tokens, of images of 4 x 4, 4 x 6 and 6 x 3
            order = torch.cat([windows(4, 4), 16 + windows(4, 6), 40 + windows(6, 3)])
        merged = torch.cat(probabilities).view(-1, 4).mean(1)
        expected = torch.empty_like(merged)
        expected[order] = merged
    # With windows the watched calls are whole images all the same, as the last layer attends in full.
    assert [len(piece) for piece in probabilities] == [64, 96, 72]
    torch.testing.assert_close(handle.last_selection["image"].scores, expected)


def windows(height: int, width: int) -> torch.Tensor:
    """Rows of an image in the order of its windows; a window of 32 pixels is 4 x 4 tokens of 8 pixels."""
    grid = torch.arange(height * width).view(height, width)
    return torch.cat([grid[i : i + 4, j : j + 4].flatten() for i in range(0, height, 4) for j in range(0, width, 4)])


def test_image_and_video_in_one_prompt() -> None:
    subject = Subject(FAMILIES["Qwen3-VL"])
    model, inputs = subject.model, subject.prompt([5, "image", 3, "video", 2])
    source = EncoderAttention(model)
    with torch.no_grad(), attach_selector(model, VisionZip(AttentionReceived(source).score), budget=0.2) as handle:
        model(**inputs)
        model(**inputs)
    assert {name: len(selection.scores) for name, selection in handle.last_selection.items()} == {
        "image": 16,
        "video": 48,
    }


def test_detach_restores_the_encoder() -> None:
    subject = Subject(FAMILIES["Qwen2.5-VL"])
    model, inputs = subject.model, subject.prompt(*ROWS)
    config = model.model.visual.blocks[-1].attn.config
    with torch.no_grad():
        logits = model(**inputs).logits
        source = EncoderAttention(model)
        assert torch.equal(model(**inputs).logits, logits)
        source.detach()
        assert model.model.visual.blocks[-1].attn.config is config
        assert torch.equal(model(**inputs).logits, logits)
    source()
    with pytest.raises(RuntimeError, match="the encoder did not run since"):
        source()


def test_other_families_are_refused() -> None:
    for name in ("Gemma 3", "LLaVA-NeXT", "Mistral 3"):
        with pytest.raises(TypeError, match=r"^model: got .*, expected one of a Qwen, GLM-4V or LLaVA family"):
            EncoderAttention(Subject(FAMILIES[name]).model)
