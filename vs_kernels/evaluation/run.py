"""An evaluation: every question at every budget, in turn, so that the times of budgets compare."""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import vs_kernels
from vs_kernels.evaluation.chart import draw
from vs_kernels.evaluation.data import read_questions
from vs_kernels.evaluation.metrics import anls, exact_match
from vs_kernels.evaluation.records import Answer, Records
from vs_kernels.evaluation.selectors import selector_named

RESULTS, CHART = "results.json", "accuracy.png"


def evaluate(
    data: Path,
    model_name: str,
    selector_name: str,
    budgets: list[float],
    out: Path,
    *,
    pool: str = "image",
    max_new_tokens: int = 32,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Ask the model every question at every budget, and write ``results.json`` and ``accuracy.png`` into ``out``.

    Answers that ``out`` has from an earlier run with the same settings are not asked for again.

    Returns:
        The summary that ``results.json`` holds.

    Raises:
        ValueError: data that cannot be read, or answers with other settings in ``out``.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vs_kernels.integrations.transformers import attach_selector
    from vs_kernels.integrations.transformers.asking import ask

    questions = read_questions(data)[:limit]
    settings = {
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "model": model_name,
        "selector": selector_name,
        "pool": pool,
        "max_new_tokens": max_new_tokens,
        "device": device,
        "dtype": dtype,
    }
    budgets = list(dict.fromkeys(budgets))
    records = Records(out, settings)
    todo = [(i, b) for i in range(len(questions)) for b in budgets if (i, b) not in records.done]
    if todo:
        processor = AutoProcessor.from_pretrained(model_name)
        model: Any = AutoModelForImageTextToText.from_pretrained(model_name, dtype=dtype)
        model = model.to(device).eval()
        columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
        with attach_selector(model, selector_named(selector_name, pool)) as handle, Progress(*columns) as progress:
            task = progress.add_task("questions x budgets", total=len(questions) * len(budgets))
            progress.advance(task, len(questions) * len(budgets) - len(todo))
            for i, budget in todo:
                question = questions[i]
                reply = ask(handle, processor, question.images, question.text, budget, max_new_tokens)
                scores = exact_match(reply.text, question.answers), anls(reply.text, question.answers)
                records.add(Answer(i, budget, reply.text, *scores, reply.visual_tokens, reply.prefill_seconds))
                progress.advance(task)
    asked = [answer for answer in records.answers if answer.question < len(questions) and answer.budget in budgets]
    summary = summary_of(asked, settings)
    (out / RESULTS).write_text(json.dumps(summary, indent=2) + "\n")
    draw(summary, out / CHART)
    return summary


def summary_of(answers: list[Answer], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, versions, and for every budget the means of the scores and the median time of the prefill."""
    rows = []
    for budget in sorted({answer.budget for answer in answers}, reverse=True):
        of_budget = [answer for answer in answers if answer.budget == budget]
        rows.append(
            {
                "budget": budget,
                "questions": len(of_budget),
                "exact_match": statistics.fmean(answer.exact_match for answer in of_budget),
                "anls": statistics.fmean(answer.anls for answer in of_budget),
                "visual_tokens": statistics.fmean(answer.visual_tokens for answer in of_budget),
                "prefill_seconds": statistics.median(answer.prefill_seconds for answer in of_budget),
            }
        )
    return {"settings": settings, "vs_kernels": vs_kernels.__version__, "torch": torch.__version__, "budgets": rows}
