"""TensorRT-RTX: engines for named GPUs, built ahead of time on any x86-64 machine, finished at load on the GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from vitdeploy import environment
from vitdeploy.backends.tensorrt_backend import PlanBackend
from vitdeploy.backends.tensorrt_versions import compute_capability_key
from vitdeploy.errors import BuildError
from vitdeploy.progress import Progress
from vitdeploy.records import BuildInfo, Manifest
from vitdeploy.sessions import BuildTarget

WEIGHT_ONLY = (
    "TensorRT-RTX documents INT8 as weight-only: weights are kept in 8 bits, products are not computed in INT8, so do "
    "not expect this engine to be faster than FP16: ship FP16, or FP8 on sm_89 and newer, or build with tensorrt"
)
OLDER_THAN_DEFAULT = "7.5"  # Turing: half precision at most, so only where it is named


class TensorRTRTXBackend(PlanBackend):
    """A backend of its own beside ``tensorrt``; its plans are of another format."""

    name: Literal["tensorrt-rtx"] = "tensorrt-rtx"
    module = "tensorrt_rtx"
    install = "pip install 'vitdeploy[tensorrt-rtx]' (x86-64 only)"

    def refuse_unfit(self, progress: Progress) -> None:
        """No release is known to compute wrongly."""

    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return what is asked for, else this GPU's, else every GPU from Ampere on that the library knows.

        Raises:
            BuildError: One is unknown to this library, or named twice.
        """
        known = supported_capabilities(trt)
        asked = target.compute_capabilities
        for capability in asked:
            if capability not in known:
                expected = ", ".join(known)
                raise BuildError(
                    f"tensorrt-rtx cannot build for compute capability {capability!r}, expected some of {expected}"
                )
            if asked.count(capability) > 1:
                raise BuildError(f"compute capability {capability!r} is named twice: name each GPU once")
        if asked:
            return tuple(sorted(asked, key=compute_capability_key))
        here = environment.current().compute_capability
        if here is not None:
            if here not in known:
                raise BuildError(
                    f"tensorrt-rtx does not serve this GPU (compute capability {here!r}, expected one of "
                    f"{', '.join(known)}): name others with --compute-capability, or use '--backend tensorrt'"
                )
            return (here,)
        return tuple(capability for capability in known if capability != OLDER_THAN_DEFAULT)

    def configure(self, trt: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]) -> None:
        """Name the GPUs one by one, also this machine's own: then the plan and its manifest say the same."""
        other = sorted({"hardware_compatibility", "version_compatible"} & set(target.options))
        if other:
            raise BuildError(f"tensorrt-rtx has no option {other[0]!r}: name GPUs with --compute-capability instead")
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, enum_name(capability))
            if not config.set_compute_capability(member, index):
                raise BuildError(f"tensorrt-rtx refuses compute capability {capability!r} beside {capabilities!r}")

    def notes(self, manifest: Manifest, capabilities: tuple[str, ...]) -> tuple[str, ...]:
        return (WEIGHT_ONLY,) if asks_for_int8(manifest) else ()

    def keeps_precision(self, manifest: Manifest) -> bool:
        return not asks_for_int8(manifest)

    def gpu_mismatch(self, built: BuildInfo, options: Mapping[str, str]) -> str | None:
        machine = environment.current()
        here = machine.compute_capability
        if here is None or here in built.compute_capabilities:
            return None
        wanted = ", ".join(built.compute_capabilities)
        return f"was built for compute capability {wanted}, here is {here} ({machine.gpu})"

    def make_context(self, trt: Any, engine: Any) -> Any:
        """Ask for kernels of the given shapes before the first run.

        The default compiles them in the background and swaps them in later, which would change a timing half-way.
        """
        strategy = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategy is None:
            return engine.create_execution_context()
        runtime_config = engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        return engine.create_execution_context(runtime_config)


def asks_for_int8(manifest: Manifest) -> bool:
    """Return whether the graph quantizes activations to INT8."""
    if manifest.precision != "mixed" or manifest.plan is None:
        return manifest.precision in ("int8", "mixed")
    return any(entry.precision == "int8" for entry in manifest.plan.entries)


def supported_capabilities(trt: Any) -> tuple[str, ...]:
    """Return the compute capabilities that the installed library can build for: ``SM120`` is ``12.0``."""
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(trt.ComputeCapability))
    found = [f"{int(match.group(1))}.{match.group(2)}" for match in names if match]
    return tuple(sorted(found, key=compute_capability_key))


def enum_name(capability: str) -> str:
    """Return ``SM89`` for ``8.9``."""
    return "SM" + capability.replace(".", "")
