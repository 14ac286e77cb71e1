"""A prompt without the placeholders of dropped tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class KeptTokens(NamedTuple):
    """Which visual tokens of one modality stay.

    Attributes:
        placeholder: the token id that stands for them in the prompt.
        lengths, ks: tokens and kept tokens of every image or video.
        indices: int64 [sum(ks)], the kept rows of the packed tokens, ascending; None where all stay.
    """

    placeholder: int
    lengths: list[int]
    ks: list[int]
    indices: Tensor | None


class CompactPrompt:
    """A prompt [B, L] without its dropped placeholders: [B, L'], padded on the left.

    Args:
        input_ids: int64 [B, L].
        attention_mask: [B, L], zero where a token is not attended to; None: all are.
        positions: int64 [R, B, L], rotary positions in the full prompt, which the kept tokens keep.
        kept: the tokens that stay, one entry for every modality in the prompt.
        text_positions: int64 [B, L], positions that start again at 0 with every sequence packed into a row.

    Attributes:
        full_length, length: L and L'.
        attention_mask: int64 [B, L'], or None where none came in and no row is padded.
        position_ids: int64 [R, B, L'], with the text positions as one more first row where they came in.
        next_positions: int64 [B], the rotary position that follows the full prompt.
        rope_deltas: int64 [B, 1], the next position less the number of tokens attended to.

    Raises:
        ValueError: a row holds a part of an image or video, or packed rows keep different numbers of tokens.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor,
        kept: list[KeptTokens],
        text_positions: Tensor | None = None,
    ):
        device = input_ids.device
        attended = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        placeholders = [input_ids == tokens.placeholder for tokens in kept]
        keep = attended & ~torch.stack(placeholders).any(0)
        # The only wait for the device: with these counts every size below is known on the host.
        lengths, *counts = torch.stack([mask.sum(1) for mask in (keep, *placeholders)]).tolist()
        for tokens, mask, of_rows in zip(kept, placeholders, counts, strict=True):
            lengths = [length + k for length, k in zip(lengths, _kept_per_row(tokens, of_rows), strict=True)]
            if tokens.indices is not None:
                chosen = torch.zeros(sum(tokens.lengths), dtype=torch.bool, device=device)
                chosen.index_fill_(0, tokens.indices.to(device), True)
                # The n-th placeholder in row-major order stands for the n-th packed token.
                mask = mask & chosen[mask.flatten().cumsum(0).view_as(mask) - 1]
            keep = keep | mask

        self.full_length = input_ids.shape[1]
        self.length = max(lengths)
        padding = torch.tensor([self.length - length for length in lengths], device=device)
        self._valid = torch.arange(self.length, device=device) >= padding[:, None]
        self._source = keep.byte().argsort(dim=1, stable=True)[:, self.full_length - self.length :]

        padded = min(lengths) < self.length
        self.attention_mask = None
        if attention_mask is not None or padded:
            self.attention_mask = self.take(attended, False).long()
        self.position_ids = self.take(positions, 0)
        if text_positions is not None:
            if padded and attention_mask is None:
                raise ValueError(f"position_ids: got packed rows that keep {lengths} tokens, expected equal numbers")
            self.position_ids = torch.cat([self._renumber(text_positions)[None], self.position_ids])
        self.next_positions = positions.amax(dim=(0, 2)) + 1
        attended_to = self.length if self.attention_mask is None else self.attention_mask.sum(1)
        self.rope_deltas = (self.next_positions - attended_to)[:, None]

    @property
    def columns(self) -> Tensor:
        """int64 [B, L'], the column of the full prompt that each column was; -1 where padding."""
        return self._source.masked_fill(~self._valid, -1)

    def take(self, values: Tensor, padding: int | bool) -> Tensor:
        """[..., B, L'] of ``values`` [..., B, L], with ``padding`` in the padded columns."""
        source = self._source.expand(*values.shape[:-1], -1)
        return values.gather(-1, source).masked_fill(~self._valid, padding)

    def decoding_inputs(self, inputs: dict[str, Any], cached: int) -> dict[str, Any]:
        """Arguments of a decoding step after the full prompt, for a cache of ``cached`` tokens that holds this one.

        Args:
            inputs: arguments of ``forward``; ``attention_mask`` [B, L + s], with s tokens after the prompt, becomes
                [B, L' + s], and ``position_ids`` that were left out count on from the full prompt.

        Raises:
            ValueError: ``attention_mask`` has another size.
        """
        tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        batch, new = tokens.shape[:2]
        after = cached - self.length + new
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape != (batch, self.full_length + after):
            expected = f"[{batch}, {self.full_length + after}], the full prompt and the {after} tokens after it"
            raise ValueError(f"attention_mask: got shape {list(mask.shape)}, expected {expected}")
        if mask is not None or self.attention_mask is not None:
            ones = torch.ones(batch, self.length + after, dtype=torch.long, device=tokens.device)
            prompt = ones[:, : self.length] if self.attention_mask is None else self.attention_mask
            rest = ones[:, self.length :] if mask is None else mask[:, self.full_length :]
            inputs = inputs | {"attention_mask": torch.cat([prompt, rest], dim=1)}
        if inputs.get("position_ids") is None:
            steps = torch.arange(after - new, after, device=tokens.device)
            inputs = inputs | {"position_ids": self.next_positions[:, None] + steps}
        return inputs

    def _renumber(self, text_positions: Tensor) -> Tensor:
        """Text positions without the gaps that dropped tokens leave, which would read as the start of a sequence."""
        starts = F.pad(text_positions.diff(dim=1) != 1, (1, 0))
        sequence = self.take(starts.cumsum(1), 0)
        column = torch.arange(self.length, device=sequence.device)
        first = F.pad(sequence.diff(dim=1) != 0, (1, 0)) * column
        return column - first.cummax(dim=1).values


def _kept_per_row(tokens: KeptTokens, counts: list[int]) -> list[int]:
    """Kept tokens of every row, whose numbers of placeholders are ``counts``."""
    items = iter(zip(tokens.lengths, tokens.ks, strict=True))
    kept = []
    for count in counts:
        row_length = row_k = 0
        while row_length < count:
            length, k = next(items, (count + 1, 0))
            row_length, row_k = row_length + length, row_k + k
        if row_length != count:
            break
        kept.append(row_k)
    if len(kept) < len(counts) or next(items, None) is not None:
        raise ValueError(
            f"input_ids: got rows with {counts} placeholders {tokens.placeholder}, "
            f"expected whole images or videos, in order, of {tokens.lengths} tokens"
        )
    return kept
