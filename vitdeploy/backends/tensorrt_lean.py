"""TensorRT's lean runtime: runs version-compatible engines of the same or an older release, and builds none.

44 MB instead of gigabytes, for a machine that only runs what was built elsewhere on a GPU of its kind. It has no engine
inspector and no parser, so precision by layer stays unchecked and a stripped engine cannot be given its weights.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, NoReturn

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends.tensorrt_backend import PlanBackend
from vitdeploy.backends.tensorrt_versions import gpu_mismatch, runs_version
from vitdeploy.errors import BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import BuildInfo
from vitdeploy.sessions import BuildTarget


class TensorRTLeanBackend(PlanBackend):
    """Opens engines that ``tensorrt`` built with ``version_compatible=True``."""

    name: Literal["tensorrt-lean"] = "tensorrt-lean"
    module = "tensorrt_lean"
    install = "pip install 'vitdeploy[tensorrt-lean]'"

    def refuse_unfit(self, progress: Progress) -> None:
        """No release is known to compute wrongly."""

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        """Refuse: it is a runtime.

        Raises:
            BuildError: Always.
        """
        raise BuildError("tensorrt-lean builds no engine: build with backend='tensorrt' and version_compatible=True")

    def version_mismatch(self, built: BuildInfo) -> str | None:
        if built.backend != "tensorrt":
            return f"was built by {built.backend}, and {self.name} runs engines of tensorrt"
        if not built.version_compatible:
            return f"was not built to be version-compatible, and {self.name} runs no other engines"
        if built.stripped:
            return f"carries no weights, and {self.name} cannot give it any"
        if not runs_version(built.version, self.version()):
            return f"was built by tensorrt {built.version}, and the installed {self.name} {self.version()} is older"
        return None

    def gpu_mismatch(self, built: BuildInfo) -> str | None:
        return gpu_mismatch(built, environment.current())


def lean_library() -> Path | None:
    """Return the lean runtime's shared library, None where it is not installed."""
    found = importlib.util.find_spec("tensorrt_lean_libs")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    for folder in folders:
        for file in sorted(Path(folder).glob("*nvinfer_lean*")):
            return file
    return None


def lean_version() -> str | None:
    """Return the version of the installed lean runtime, by its package's metadata."""
    return environment.versions().get("tensorrt-lean")
