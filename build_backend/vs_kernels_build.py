"""PEP 517 backend: setuptools, plus the two things that it cannot know.

Where torch is: pip's build isolation hides the installed packages from ``sys.path``, but ``sysconfig`` still
names the folders of the target environment. An installed torch is used from there, so that nobody downloads a
second one; only where there is none does the build ask for it.

What is stale: setuptools packs whatever lies in ``build/lib*``, and an editable build leaves its libraries in the
source tree, so a library or module of an earlier build would slip into the new wheel.
"""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks that setuptools serves unchanged)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

TORCH_REQUIREMENT = "torch>=2.10"


def torch_root() -> Path | None:
    """Folder of the torch package to build against, or None where there is none."""
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [Path(sysconfig.get_path(key), "torch") for key in ("purelib", "platlib")]
    return next((root for root in candidates if (root / "include/torch/csrc/stable/library.h").is_file()), None)


def get_requires_for_build_wheel(config_settings=None):
    requirements = build_meta.get_requires_for_build_wheel(config_settings)
    return requirements if torch_root() else [*requirements, TORCH_REQUIREMENT]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    for stale in Path("vs_kernels").glob("_*.so"):
        stale.unlink()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
