"""Names for the compiled operators of torchvision where they do not load.

The torchvision of PyPI is compiled for CUDA and does not load its operators beside a torch for CPUs; then it cannot be
imported either. vLLM, lmms-eval and the processors of videos import it and call no such operator. `make test-vllm` and
`make test-lmms-eval` run this file once, to see whether it is needed, and if so put it into the environment and let
every start of Python import it.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType


class DefineFirst:
    """Defines the names when torchvision is imported, and not before: torch takes a second to import."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            _define()


def _define() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r'register_meta\("(\w+)"\)|register_fake\("torchvision::(\w+)"\)', source)
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted({"".join(pair) for pair in names}):
        library.define(f"{name}(Tensor x) -> Tensor")
    _libraries.append(library)  # what a library defines goes with it


_libraries: list[object] = []

if __name__ == "__main__":
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        packages = Path(sys.argv[1])
        (packages / "torchvision_ops.py").write_text(Path(__file__).read_text())
        (packages / "torchvision_ops.pth").write_text("import torchvision_ops\n")
else:
    sys.meta_path.insert(0, DefineFirst())  # type: ignore[arg-type]
