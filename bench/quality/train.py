"""Makes what is shipped: backbones, selectors, and the comparison of recipes. Each part goes on where it was left."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.quality import digits, methods, shapes
from bench.quality.answering import correct_answers, make_features
from bench.quality.backbone import load_backbone, train_backbone
from bench.quality.evaluate import recall
from bench.quality.model import TEXT_WIDTH
from bench.quality.recipes import BATCH, PHASES, SMALL_BATCHES, STEPS, train_selector
from bench.quality.shipped import SEEDS, SHIPPED_RECIPES, WEIGHTS, backbone_path, selector_path
from bench.quality.tasks import Task

VALIDATION_SEED, TRAINING_SEED = 7, 11
TRAINING_PICTURES, COMPARED_PICTURES = 1000, 500
# By name: task, steps and other arguments of train_backbone. The early and the whole one have never met a picture
# without its evidence; the whole one is of another seed, the early one the beginning of the first.
BACKBONES: dict[str, tuple[Task, int, dict[str, Any]]] = {
    "digits": (digits.TASKS[0], 1000, {}),
    "digits_early": (digits.TASKS[0], 1000, {"stop": 400}),
    "digits_whole": (digits.TASKS[0], 1000, {"seed": 1, "dropping": 0.0}),
    "shapes": (shapes.TASK, 800, {}),
}
# Recipes that train on all tokens.
LONG_SEQUENCE = ("soft", "soft, small batches", "blend", "mask", "soft, then gather")
COMPARED_BACKBONES = ("digits", "digits_whole", "digits_early")
COMPARISON = WEIGHTS / "comparison.jsonl"


def train_backbones(console: Console) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    for name, (task, steps, options) in BACKBONES.items():
        if not backbone_path(name).is_file():
            train_backbone(task, backbone_path(name), steps, log=console.print, **options)


def train_selectors(console: Console) -> None:
    for task in (*digits.TASKS, shapes.TASK):
        features, backbone = None, load_backbone(task, backbone_path(task.backbone))
        for recipe in SHIPPED_RECIPES:
            for seed in SEEDS:
                path = selector_path(task.name, recipe, seed)
                if path.is_dir():
                    continue
                if features is None:
                    features = make_features(backbone, task, "train", TRAINING_PICTURES, TRAINING_SEED)
                trained = train_selector(backbone, task, features, recipe, seed)
                trained.selector.half().save_pretrained(path)
                console.print(f"{path.name}: {trained.step_seconds * STEPS:.0f} s")


def compare(console: Console) -> None:
    """Every recipe on every task and backbone, all seeds: the same pictures and steps for all."""
    done = set()
    if COMPARISON.is_file():
        records = [json.loads(line) for line in COMPARISON.read_text().splitlines()]
        done = {(record["backbone"], record["task"], record["recipe"], record["seed"]) for record in records}
    sets = {}
    for name in COMPARED_BACKBONES:
        for task in reversed(digits.TASKS):
            backbone = load_backbone(task, backbone_path(name))
            training = make_features(backbone, task, "train", TRAINING_PICTURES, TRAINING_SEED)
            validation = make_features(backbone, task, "validation", COMPARED_PICTURES, VALIDATION_SEED)
            sets[name, task.name] = task, backbone, training, validation
    # Cheap recipes first: whoever stops early has whole rows of the table.
    cheap = [recipe for recipe in PHASES if recipe not in LONG_SEQUENCE]
    cases = [
        (recipe, seed, key) for some in (cheap, LONG_SEQUENCE) for seed in SEEDS for key in sets for recipe in some
    ]
    for recipe, seed, key in cases:
        if (*key, recipe, seed) in done:
            continue
        task, backbone, training, validation = sets[key]
        batch = SMALL_BATCHES.get(recipe, BATCH)
        steps = STEPS * BATCH // batch
        trained = train_selector(backbone, task, training, recipe, seed, steps, batch)
        record = {
            "backbone": key[0], "task": key[1], "recipe": recipe, "seed": seed, "steps": steps,
            "batch": batch, "pictures": COMPARED_PICTURES, "step_seconds": trained.step_seconds,
        }  # fmt: skip
        for budget in (0.2, 0.1):
            indices = methods.learned(trained.selector)(validation, budget)
            tokens = validation.tokens.gather(1, indices[..., None].expand(-1, -1, TEXT_WIDTH))
            right = correct_answers(backbone, task.side, tokens, indices, *validation.batch.words)
            record[f"accuracy@{budget}"] = right.mean().item()
            record[f"recall@{budget}"] = recall(validation.batch.relevant, indices)
        with COMPARISON.open("a") as file:
            file.write(json.dumps(record) + "\n")
        console.print(f"{', '.join(key)}, {recipe}, seed {seed}: {record['accuracy@0.2']:.3f}")
    console.print(comparison_table(COMPARISON), markup=False)


def comparison_table(path: Path) -> str:
    """The table of docs/training.md: mean and standard deviation over the seeds, in Markdown."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    recipes = list(PHASES)
    records.sort(key=lambda r: (COMPARED_BACKBONES.index(r["backbone"]), r["task"], recipes.index(r["recipe"])))
    lines = [
        "| backbone, task | recipe | seeds | recall at 0.2 | accuracy at 0.2 | at 0.1 | ms a step |",
        "|" + "---|" * 7,
    ]
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for record in records:
        groups.setdefault((record["backbone"], record["task"], record["recipe"]), []).append(record)
    for (backbone, task, recipe), group in groups.items():
        cells = [_spread([record[name] for record in group]) for name in ("recall@0.2", "accuracy@0.2", "accuracy@0.1")]
        step = statistics.median(record["step_seconds"] for record in group)
        lines.append(f"| {backbone}, {task} | {recipe} | {len(group)} | {' | '.join(cells)} | {1000 * step:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


TRAINERS: dict[str, Callable[[Console], None]] = {
    "backbones": train_backbones,
    "selectors": train_selectors,
    "comparison": compare,
}
