"""TensorRT 10.3 to 11.x: engines for the GPU that is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vitdeploy import environment
from vitdeploy.backends.tensorrt_backend import PlanBackend
from vitdeploy.backends.tensorrt_versions import find_problems
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import Progress
from vitdeploy.records import BuildInfo
from vitdeploy.sessions import BuildTarget


class TensorRTBackend(PlanBackend):
    """Builds on the GPU that will run the engine; on a Jetson the library comes with JetPack."""

    name: Literal["tensorrt"] = "tensorrt"
    module = "tensorrt"

    @property
    def install(self) -> str:  # type: ignore[override]
        """The command that adds the library."""
        if environment.current().jetpack is not None:
            return (
                "sudo apt-get install python3-libnvinfer, and make the virtual environment with --system-site-packages"
            )
        return "pip install 'vitdeploy[tensorrt]'"

    def refuse_unfit(self, progress: Progress) -> None:
        for problem in find_problems(self.version(), environment.current()):
            if problem.severity == "refuse":
                raise BackendError(problem.text)
            progress.note(problem.text)

    def bound_to_gpu(self, options: Mapping[str, str]) -> bool:
        return options.get("hardware_compatibility", "none") == "none"

    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return this GPU's compute capability.

        Raises:
            BuildError: There is no GPU, or another one is asked for.
        """
        here = environment.current().compute_capability
        if here is None:
            raise BuildError(
                "tensorrt builds on the GPU that will run the engine, and there is none here: build there, or ahead of "
                "time with '--backend tensorrt-rtx' (pip install 'vitdeploy[tensorrt-rtx]')"
            )
        other = [capability for capability in target.compute_capabilities if capability != here]
        if other:
            raise BuildError(
                f"tensorrt builds for the GPU that is here ({here}), not for compute capability {other[0]!r}: "
                f"build there, or use '--backend tensorrt-rtx'"
            )
        return (here,)

    def configure(self, trt: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]) -> None:
        """Nothing is TensorRT's alone: precision is in the graph."""

    def gpu_mismatch(self, built: BuildInfo, options: Mapping[str, str]) -> str | None:
        machine = environment.current()
        compatible = options.get("hardware_compatibility", "none")
        here = machine.compute_capability
        if here is None or compatible == "ampere_plus":
            return None
        if built.compute_capabilities and here not in built.compute_capabilities:
            wanted = f"{', '.join(built.compute_capabilities)} ({built.gpu or 'another GPU'})"
            return f"was built for compute capability {wanted}, here is {here} ({machine.gpu})"
        if compatible == "none" and built.gpu is not None and built.gpu != machine.gpu:
            return f"was built on {built.gpu!r}, here is {machine.gpu!r}, and a plan runs on the model it was built on"
        return None

    def make_context(self, trt: Any, engine: Any) -> Any:
        return engine.create_execution_context()
