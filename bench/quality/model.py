"""Small Qwen2.5-VL models, and calls of their two halves that share vision features between evaluations."""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

PATCH, MERGE = 8, 2
WINDOW = 64  # pixels: vision attention stays within squares of this side
VISION_WIDTH, TEXT_WIDTH = 64, 128


def small_model(vocabulary: dict[str, int], seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of 0.7 M parameters: vision 3 blocks of width 64, language model 3 layers of width 128.

    Weights start with a standard deviation of 1 / sqrt(fan-in); the usual 0.02 is far too small at this width.
    """
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            # The columns of a picture get the slowest rotations; with the usual base they would hardly turn at all.
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10.0},
            "bos_token_id": vocabulary["<pad>"],
            "eos_token_id": vocabulary["<eos>"],
            "pad_token_id": vocabulary["<pad>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [],
            "window_size": WINDOW,
        },
        image_token_id=vocabulary["<image>"],
        video_token_id=vocabulary["<video>"],
        vision_start_token_id=vocabulary["<vision_start>"],
        vision_end_token_id=vocabulary["<vision_end>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(std=0.1, generator=generator)
            elif parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    for block in model.model.visual.blocks:
        block.attn.forward = MethodType(_equal_windows, block.attn)
    return model


def _equal_windows(self, hidden_states, cu_seqlens, position_embeddings, **others):
    """Vision attention with all windows, where they are of one size, in a single call instead of one call each."""
    if (cu_seqlens.diff() != cu_seqlens[1]).any():
        return type(self).forward(self, hidden_states, cu_seqlens, position_embeddings, **others)
    rows, window = hidden_states.shape[0], int(cu_seqlens[1] - cu_seqlens[0])
    query, key, value = self.qkv(hidden_states).reshape(rows, 3, self.num_heads, -1).unbind(1)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        part.reshape(rows // window, window, self.num_heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
    return self.proj(out.transpose(1, 2).reshape(rows, -1))


def to_pixel_values(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """pixel_values and image_grid_thw of uint8 pictures [B, H, W, 3], in the order of Qwen's image processor."""
    batch, height, width, _ = pictures.shape
    rows, columns = height // PATCH, width // PATCH
    values = (pictures.float() / 127.5 - 1).permute(0, 3, 1, 2)
    values = values.reshape(batch, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    values = values.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*[-1] * 6, 2, -1, -1)
    return values.reshape(batch * rows * columns, -1), torch.tensor([[1, rows, columns]] * batch)


def encode(model: Qwen2_5_VLForConditionalGeneration, pictures: Tensor) -> Tensor:
    """Visual tokens [B, N, D]."""
    pixel_values, grid = to_pixel_values(pictures)
    tokens = model.model.visual(pixel_values, grid_thw=grid).pooler_output
    return tokens.view(len(pictures), -1, tokens.shape[-1])


def answer_logits(
    model: Qwen2_5_VLForConditionalGeneration,
    tokens: Tensor,  # [B, k, D]
    indices: Tensor | None,  # int64 [B, k], places of the tokens among all N = side * side; None: k = N
    side: int,
    prompt: Tensor,  # int64 [B, L]
) -> Tensor:
    """Logits [B, L, V] after every word of the prompt that follows the picture; tokens keep their full positions."""
    batch, length = prompt.shape
    places = torch.arange(side * side).expand(batch, -1) if indices is None else indices
    ends = torch.tensor([model.config.vision_start_token_id, model.config.vision_end_token_id])
    embed = model.get_input_embeddings()
    start, end = embed(ends)
    embeddings = [start.expand(batch, 1, -1), tokens, end.expand(batch, 1, -1), embed(prompt)]
    after = torch.arange(side + 1, side + 2 + length).expand(3, batch, -1)
    grid = torch.stack([torch.ones_like(places), 1 + places // side, 1 + places % side])
    positions = torch.cat([torch.zeros(3, batch, 1, dtype=torch.long), grid, after], dim=2)
    language_model = model.model.language_model
    *layers, last = language_model.layers
    hidden = torch.cat(embeddings, dim=1)
    rotations = language_model.rotary_emb(hidden, positions)
    for layer in layers:
        hidden = layer(hidden, position_embeddings=rotations)
    return model.lm_head(language_model.norm(_last_places(last, hidden, rotations, length)))


def _last_places(layer: nn.Module, hidden: Tensor, rotations: tuple[Tensor, Tensor], length: int) -> Tensor:
    """The output [B, length, D] of a decoder layer for the last places alone; of the others nothing is read."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key, value = (
        projection(part).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection, part in (
            (attention.q_proj, normed[:, -length:]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    cos, sin = (part[:, None] for part in rotations)
    query = query * cos[:, :, -length:] + qwen.rotate_half(query) * sin[:, :, -length:]
    key = key * cos + qwen.rotate_half(key) * sin
    places = hidden.shape[1]
    causal = torch.ones(length, places, dtype=torch.bool).tril(places - length)
    out = F.scaled_dot_product_attention(query, key, value, causal, scale=attention.scaling, enable_gqa=True)
    hidden = hidden[:, -length:] + attention.o_proj(out.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@torch.no_grad()
def encode_with_attention(model: Qwen2_5_VLForConditionalGeneration, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens [B, N, D], and the attention [B, N] that each received in the last block of the vision encoder."""
    seen: dict[str, Tensor] = {}

    def note(attention, inputs, arguments):
        rows, window = inputs[0].shape[0], int(arguments["cu_seqlens"][1])
        query, key, _ = attention.qkv(inputs[0]).reshape(rows, 3, attention.num_heads, -1).unbind(1)
        query, key = qwen.apply_rotary_pos_emb_vision(query, key, *arguments["position_embeddings"])
        query, key = (part.reshape(rows // window, window, *part.shape[1:]).transpose(1, 2) for part in (query, key))
        weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(-1)
        seen["received"] = weights.mean(1).sum(1).flatten()

    hook = model.model.visual.blocks[-1].attn.register_forward_pre_hook(note, with_kwargs=True)
    try:
        tokens = encode(model, pictures)
    finally:
        hook.remove()
    _, grid = to_pixel_values(pictures[:1])
    order, _ = qwen.get_vision_window_index(
        grid.expand(len(pictures), -1), spatial_merge_size=MERGE, window_size=WINDOW, patch_size=PATCH
    )
    per_token = seen["received"].view(-1, MERGE**2).sum(1)[order.argsort()]
    return tokens, per_token.view(tokens.shape[:2])
