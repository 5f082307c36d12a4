"""TensorRT 10.3 to 11.x: engines for the GPU that is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vitdeploy import environment
from vitdeploy.backends.tensorrt_backend import BuildingBackend
from vitdeploy.backends.tensorrt_lean import lean_library, lean_version
from vitdeploy.backends.tensorrt_versions import dla_refusal, find_problems, gpu_mismatch, runs_version
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import Progress
from vitdeploy.records import BuildInfo, Manifest
from vitdeploy.sessions import BuildTarget


class TensorRTBackend(BuildingBackend):
    """Builds on the GPU that will run the engine; on a Jetson the library comes with JetPack."""

    name: Literal["tensorrt"] = "tensorrt"
    module = "tensorrt"

    @property
    def install(self) -> str:  # type: ignore[override]
        """The command that adds the library for this driver's CUDA."""
        machine = environment.current()
        if machine.jetpack is not None:
            return (
                "sudo apt-get install python3-libnvinfer, and make the virtual environment with --system-site-packages"
            )
        old = machine.cuda is not None and machine.cuda.startswith("12.")
        return f"pip install 'vitdeploy[{'tensorrt-cu12' if old else 'tensorrt'}]'"

    def refuse_unfit(self, progress: Progress) -> None:
        for problem in find_problems(self.version(), environment.current()):
            if problem.severity == "refuse":
                raise BackendError(problem.text)
            progress.note(problem.text)

    def bound_to_gpu(self, target: BuildTarget) -> bool:
        return target.hardware_compatibility == "none"

    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return this GPU's compute capability.

        Raises:
            BuildError: There is no GPU, or another one is asked for.
        """
        here = environment.current().compute_capability
        if here is None:
            raise BuildError(
                "tensorrt builds on the GPU that will run the engine, and there is none here: build there, or ahead of "
                "time with backend='tensorrt-rtx' (pip install 'vitdeploy[tensorrt-rtx]')"
            )
        other = [capability for capability in target.compute_capabilities if capability != here]
        if other:
            raise BuildError(
                f"tensorrt builds for the GPU that is here ({here}), not for compute capability {other[0]!r}: "
                f"build there, or use backend='tensorrt-rtx'"
            )
        return (here,)

    def configure(
        self, trt: Any, builder: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]
    ) -> None:
        """Put the engine on a deep-learning accelerator, where that is asked for.

        Raises:
            BuildError: The board has none, or this release does not serve it.
        """
        if target.dla_core is None:
            return
        refusal = dla_refusal(self.version(), environment.current(), int(builder.num_DLA_cores), target.dla_core)
        if refusal is not None:
            raise BuildError(refusal)
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = target.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    def version_mismatch(self, built: BuildInfo) -> str | None:
        if built.backend != self.name:
            return f"was built by {built.backend}, and {self.name} was requested"
        if built.version == self.version():
            return None
        differ = f"was built by {self.name} {built.version}, and {self.version()} is installed"
        if not built.version_compatible:
            return differ
        if not runs_version(built.version, self.version()):
            return f"{differ}, and a version-compatible engine needs the same or a newer one"
        if lean_version() != built.version or lean_library() is None:
            return (
                f"{differ}: a version-compatible engine of another version needs that version's lean runtime, "
                f"pip install tensorrt-lean=={built.version}"
            )
        return None

    def gpu_mismatch(self, built: BuildInfo) -> str | None:
        return gpu_mismatch(built, environment.current())

    def runtime_for(self, runtime: Any, manifest: Manifest) -> Any:
        """Return the runtime itself, or for an engine of an older version that version's lean runtime.

        Raises:
            BackendError: The lean runtime cannot be loaded.
        """
        built = manifest.build
        if built is None or built.version == self.version():
            return runtime
        library: Path | None = lean_library()
        loaded = runtime.load_runtime(str(library)) if library is not None else None
        if loaded is None:
            raise BackendError(
                f"the lean runtime of TensorRT {built.version} cannot be loaded: pip install "
                f"tensorrt-lean=={built.version}"
            )
        return loaded
