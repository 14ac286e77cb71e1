"""Questions about images in a JSONL file."""

import json
from pathlib import Path
from typing import NamedTuple


class Question(NamedTuple):
    """One line: ``{"image": path or paths, "question": text, "answer": text or texts}``."""

    images: list[Path]
    text: str
    answers: list[str]


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file; relative paths of images start at its directory.

    Raises:
        ValueError: a line that is no such question, or an image that does not exist; the message names the line.
    """
    path = Path(path)
    questions = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            images, answers = _texts(entry["image"]), _texts(entry["answer"])
            text = entry["question"]
            if not isinstance(text, str):
                raise TypeError(f"got question {text!r}, expected text")
        except (ValueError, KeyError, TypeError) as error:
            expected = '{"image": path or paths, "question": text, "answer": text or texts}'
            raise ValueError(f"{path}, line {number}: {error!r}, expected {expected}") from error
        paths = [path.parent / image for image in images]
        for image in paths:
            if not image.is_file():
                raise ValueError(f"{path}, line {number}: no image {image}")
        questions.append(Question(paths, text, answers))
    if not questions:
        raise ValueError(f"{path}: no questions in it")
    return questions


def _texts(value: object) -> list[str]:
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    if (isinstance(value, list) and len(texts) < len(value)) or not texts:
        raise TypeError(f"got {value!r}, expected text or texts")
    return texts
