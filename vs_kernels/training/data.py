"""Conversations about images, in the layout of the published training data.

One JSON object a line: ``{"image": "a.jpg" or ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value":
"<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}, ...]}``; without ``image``, text only.
"""

import json
from array import array
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

IMAGE_MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
IGNORED_LABEL = -100


class Conversations(Dataset):
    """The lines of a file, each checked when the file is opened and read again when it is needed.

    Args:
        path: the JSON lines file.
        images: folder that image paths are relative to; None: the folder of the file.

    Raises:
        FileNotFoundError: the file, or an image that a line names, is not there.
        ValueError: a line that is no conversation. Both name file and line.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file, expected JSON lines of conversations")
        self.images = self.path.parent if images is None else Path(images)
        self._starts, self._numbers = array("Q"), array("Q")
        with self.path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    for name in self._parse(line, number)["images"]:
                        if not (self.images / name).is_file():
                            raise FileNotFoundError(f"{self.path}:{number}: no such image: {self.images / name}")
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)
        if not self._starts:
            raise ValueError(f"{self.path}: got no lines, expected at least one conversation")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``messages`` as chat templates take them and ``images``, RGB, in the order in which they are spoken of."""
        number = self._numbers[index]
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            record = self._parse(file.readline(), number)
        try:
            images = [Image.open(self.images / name).convert("RGB") for name in record["images"]]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path}:{number}: not a readable image: {error}") from error
        return {"messages": record["messages"], "images": images}

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path}:{number}: not a JSON object: {error}") from None
        try:
            names = record.get("image") or []
            messages = [_message(turn) for turn in record["conversations"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}:{number}: got {error!r}, expected image and conversations") from None
        names = [names] if isinstance(names, str) else names
        marks = sum(part["type"] == "image" for message in messages for part in message["content"])
        if marks != len(names):
            raise ValueError(
                f"{self.path}:{number}: got {marks} {IMAGE_MARK} marks, expected {len(names)}, one an image"
            )
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError(f"{self.path}:{number}: got no turn of gpt, expected an answer to learn from")
        return {"messages": messages, "images": names}


def _message(turn: dict[str, str]) -> dict[str, Any]:
    content: list[dict[str, str]] = []
    for index, text in enumerate(turn["value"].split(IMAGE_MARK)):
        if index:
            content.append({"type": "image"})
        # The published data puts the mark on a line of its own; chat templates bring their own spacing.
        if text := text.strip("\n"):
            content.append({"type": "text", "text": text})
    return {"role": ROLES[turn["from"]], "content": content}


class Collator:
    """Batches of arguments for a model, with labels on the answers alone.

    Args:
        processor: of the model: a chat template, a fast tokenizer and an image processor.
        end_of_answer: whether the token that ends an answer is a label too.
    """

    def __init__(self, processor: Any, end_of_answer: bool = True):
        self.processor = processor
        self.end_of_answer = end_of_answer
        self.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts, masks = zip(*(self._answers(example["messages"]) for example in examples), strict=True)
        images = [example["images"] for example in examples]
        batch = self.processor(
            text=list(texts), images=images if any(images) else None, padding=True, return_tensors="pt"
        )
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED_LABEL)
        for row, (ids, mask) in enumerate(masks):
            attended = batch["attention_mask"][row].bool()
            row_ids = batch["input_ids"][row][attended]
            learnt = self._spread(ids, mask, row_ids.tolist())
            batch["labels"][row, attended] = torch.where(learnt, row_ids, IGNORED_LABEL)
        return dict(batch)

    def _answers(self, messages: list[dict[str, Any]]) -> tuple[str, tuple[list[int], list[bool]]]:
        """The text of a conversation, its tokens with one for each image, and which of them are answers."""
        template = self.processor.apply_chat_template
        text = template(messages, tokenize=False)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(template(messages[:index], tokenize=False, add_generation_prompt=True))
                answer = "".join(part.get("text", "") for part in message["content"])
                if text[start : start + len(answer)] != answer:
                    raise ValueError(f"processor: got a chat template that changes the answer {answer[:50]!r}")
                spans.append((start, start + len(answer)))
        encoded = self.processor.tokenizer(text, return_offsets_mapping=True)
        mask = [
            any(first <= start and end <= last and start < end for first, last in spans)
            for start, end in encoded.offset_mapping
        ]
        if self.end_of_answer:
            mask = [now or before for now, before in zip(mask, [False, *mask[:-1]], strict=True)]
        return text, (encoded.input_ids, mask)

    def _spread(self, ids: list[int], mask: list[bool], expanded: list[int]) -> Tensor:
        """bool [L]: ``mask`` of tokens with one for each image, for tokens with all placeholders of an image."""
        spread, at = [], 0
        for token, learnt in zip(ids, mask, strict=True):
            run = 1
            while token == self.image_token_id and expanded[at + run : at + run + 1] == [token]:
                run += 1
            if expanded[at : at + 1] != [token]:
                break
            spread += [learnt] * run
            at += run
        if at != len(expanded):
            raise ValueError("processor: got tokens that are not those of the text with its placeholders multiplied")
        return torch.tensor(spread)
