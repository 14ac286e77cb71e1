"""Answers on disk, one line each, so that a run that was stopped goes on where it was."""

import json
from pathlib import Path
from typing import Any, NamedTuple

SETTINGS, ANSWERS = "settings.json", "answers.jsonl"


class Answer(NamedTuple):
    """One answer.

    Attributes:
        question: its number, from 0.
        budget: retention budget.
        prediction: what the model said.
        exact_match, anls: its scores.
        visual_tokens: visual tokens that the language model read.
        prefill_seconds: from pixels to the logits of the first token.
    """

    question: int
    budget: float
    prediction: str
    exact_match: float
    anls: float
    visual_tokens: int
    prefill_seconds: float


class Records:
    """The answers in a directory.

    Raises:
        ValueError: the directory has answers of other settings.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / SETTINGS
        if path.is_file():
            earlier = json.loads(path.read_text())
            changed = sorted(name for name in settings | earlier if settings.get(name) != earlier.get(name))
            if changed:
                raise ValueError(
                    f"--out: {directory} has answers with another {', '.join(changed)}, expected a new one"
                )
        else:
            path.write_text(json.dumps(settings, indent=2) + "\n")
        self._path = directory / ANSWERS
        self.answers: list[Answer] = []
        if self._path.is_file():
            text = self._path.read_text()
            # A run that was killed may have left half of a line.
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                self._path.write_text(whole)
            self.answers = [Answer(**json.loads(line)) for line in whole.splitlines()]

    def add(self, answer: Answer) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(answer._asdict()) + "\n")
        self.answers.append(answer)

    @property
    def done(self) -> set[tuple[int, float]]:
        """(question, budget) of the answers there are."""
        return {(answer.question, answer.budget) for answer in self.answers}
