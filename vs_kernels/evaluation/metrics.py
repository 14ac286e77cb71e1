"""Scores of an answer: exact match and ANLS."""

from collections.abc import Sequence


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals one of the answers but for case, spaces and a full stop at the end, else 0."""
    plain = {_normal(answer).removesuffix(".") for answer in answers}
    return float(_normal(prediction).removesuffix(".") in plain)


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al., arXiv 1905.13648): the largest
    ``1 - distance / longer length`` whatever case and spaces, or 0 where it is below the threshold. At the threshold
    it stays, as in the evaluation script of the challenge and in lmms-eval; the formula of the paper has 0 there."""
    best = 0.0
    for answer in answers:
        left, right = _normal(prediction), _normal(answer)
        longer = max(len(left), len(right))
        best = max(best, 1 - edit_distance(left, right) / longer if longer else 1.0)
    return best if best >= threshold else 0.0


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements of one character that turn ``left`` into ``right``."""
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        current = [i]
        for j, b in enumerate(right, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
