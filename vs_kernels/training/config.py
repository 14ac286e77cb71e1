"""The file that ``vs-kernels train`` reads."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vs_kernels.plan import check_budget
from vs_kernels.selector import POOLS
from vs_kernels.training.curriculum import Curriculum
from vs_kernels.training.recipes import RECIPES


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how.

    Attributes:
        model: a directory or a repository of the Hugging Face hub.
        data: JSON lines of conversations, see :mod:`vs_kernels.training.data`.
        output: directory for checkpoints, logs and, in ``selector/``, the trained selector.
        images: folder that image paths are relative to; None: that of ``data``.
        recipe: train mode and curriculum, one of ``RECIPES``.
        budget: retention budget of the selector.
        pool: of the selector.
        hidden_features: of the scorer; None: half of the model's hidden size, as published.
        curriculum: entries of :class:`Curriculum` that replace the recipe's.
        processor: arguments of the model's processor, such as ``max_pixels``.
        arguments: of transformers' ``TrainingArguments``: learning rate, batch size, precision, checkpointing.
        tensorboard: log for TensorBoard too.
        dtype: of the model's weights.
    """

    model: str
    data: str
    output: str
    images: str | None = None
    recipe: str = "score_function"
    budget: float = 0.2
    pool: str = "image"
    hidden_features: int | None = None
    curriculum: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    tensorboard: bool = False
    dtype: str = "bfloat16"

    def schedules(self) -> Curriculum:
        """The recipe's curriculum with the entries of this file."""
        own = Curriculum.from_config(self.curriculum)
        return replace(RECIPES[self.recipe].curriculum, **{name: getattr(own, name) for name in self.curriculum})


def read_config(path: str | Path) -> TrainConfig:
    """The configuration in a YAML file; ``data``, ``images`` and ``output`` are relative to its folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, a missing or unknown name, a value that does not fit; the message names the file, and
            the line where the file cannot be read.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the YAML file of a training")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: not YAML: {error.problem}") from None
    known = {entry.name for entry in fields(TrainConfig)}
    if not isinstance(values, dict) or not values.keys() <= known:
        got = sorted(values.keys() - known) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: got {got}, expected names among {sorted(known)}")
    if missing := [name for name in ("model", "data", "output") if name not in values]:
        raise ValueError(f"{path}: {', '.join(missing)}: got nothing, expected a value")
    for name in ("data", "images", "output"):
        if values.get(name) is not None:
            values[name] = str(path.parent / str(values[name]))
    config = TrainConfig(**values)
    try:
        check_budget(config.budget)
        for name, choices in (("recipe", tuple(RECIPES)), ("pool", POOLS), ("dtype", DTYPES)):
            if getattr(config, name) not in choices:
                raise ValueError(f"{name}: got {getattr(config, name)!r}, expected one of {choices}")
        config.schedules()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config


DTYPES = ("float32", "bfloat16", "float16")
