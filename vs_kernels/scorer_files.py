"""The four tensors of a scorer in files that may hold a whole model, under the names that tools give them."""

import pickle
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")

# What training tools and models put before the name of a tensor of the scorer.
PREFIXES = ("module", "_orig_mod", "model", "visual", "importance_scorer", "scorer")
PATTERN = re.compile(rf"((?:(?:{'|'.join(PREFIXES)})\.)*)({'|'.join(map(re.escape, NAMES))})")


class Reader:
    """Tensors of some files by name, each read when it is asked for: safetensors, or what ``torch.save`` wrote."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __enter__(self) -> "Reader":
        from safetensors import SafetensorError, safe_open

        self._stack = ExitStack()
        self._sources: dict[str, Callable[[str], Tensor]] = {}
        for path in self.paths:
            try:
                if path.suffix == ".safetensors":
                    file: Any = self._stack.enter_context(safe_open(path, "pt"))
                    self._sources |= dict.fromkeys(file.keys(), file.get_tensor)
                else:
                    tensors = torch.load(path, map_location="cpu", weights_only=True)
                    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
                    if not all(isinstance(name, str) for name in tensors):
                        raise ValueError(f"names {list(tensors)[:8]}, expected text")
                    self._sources |= dict.fromkeys(tensors, tensors.__getitem__)
            except pickle.UnpicklingError as error:
                self._stack.close()
                # The message of torch advises to run what the file says.
                raise ValueError(f"{path}: not a file of torch.save with tensors alone") from error
            except (SafetensorError, AttributeError, OSError, RuntimeError, EOFError, ValueError) as error:
                self._stack.close()
                kind = "a safetensors file" if path.suffix == ".safetensors" else "a file of torch.save with tensors"
                raise ValueError(f"{path}: not {kind}: {error}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        return sorted(self._sources)

    def read(self, name: str) -> Tensor:
        return self._sources[name](name)


def scorer_tensors(
    reader: Reader, source: str, only: str = "", wanted: Callable[[str], str] = lambda name: name
) -> dict[str, Tensor]:
    """The tensors of the scorer, by their names in :class:`ImportanceScorer`.

    Args:
        source: where they come from, for messages.
        only: a prefix that they must have.
        wanted: the name that a message gives to a missing one.

    Raises:
        ValueError: one is missing, or there twice.
    """
    found: dict[str, str] = {}
    for full_name in reader.names:
        match = PATTERN.fullmatch(full_name)
        if match is None or (only and only not in match[1].split(".")):
            continue
        if match[2] in found:
            raise ValueError(f"{source}: two tensors for {match[2]}: {found[match[2]]} and {full_name}, expected one")
        found[match[2]] = full_name
    for name in NAMES:
        if name not in found:
            others = reader.names if len(reader.names) <= 8 else [*reader.names[:8], "..."]
            prefix = f"{only}." if only else ""
            raise ValueError(f"{source}: tensor {wanted(prefix + name)} is missing, found {others}")
    return {name: reader.read(found[name]) for name in NAMES}
