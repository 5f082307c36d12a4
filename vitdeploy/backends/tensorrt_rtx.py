"""TensorRT-RTX: engines for named GPUs, built ahead of time on any x86-64 machine, finished at load on the GPU."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vitdeploy import environment
from vitdeploy.artifacts import Engine
from vitdeploy.backends.tensorrt_backend import BuildingBackend
from vitdeploy.backends.tensorrt_caches import cache_path, read_cache, write_cache
from vitdeploy.backends.tensorrt_session import EngineRequest
from vitdeploy.backends.tensorrt_versions import compute_capability_key
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import Progress
from vitdeploy.records import BuildInfo, Manifest
from vitdeploy.sessions import BuildTarget, SessionOptions

WEIGHT_ONLY = (
    "TensorRT-RTX documents INT8 as weight-only: weights are kept in 8 bits, products are not computed in INT8, so do "
    "not expect this engine to be faster than FP16: ship FP16, or FP8 on sm_89 and newer, or build with tensorrt"
)
# 7.5 (Turing) has half precision at most; 8.0 (A100, A30) is in the library and not in the support matrices to 1.5
ONLY_WHEN_NAMED = ("7.5", "8.0")


class TensorRTRTXBackend(BuildingBackend):
    """A backend of its own beside ``tensorrt``; its plans are of another format."""

    name: Literal["tensorrt-rtx"] = "tensorrt-rtx"
    module = "tensorrt_rtx"
    install = "pip install 'vitdeploy[tensorrt-rtx]' (x86-64 only)"

    def refuse_unfit(self, progress: Progress) -> None:
        """No release is known to compute wrongly."""

    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return what is asked for, else this GPU's, else the GPUs from Ampere on that the support matrix lists.

        Raises:
            BuildError: One is unknown to this library, or named twice.
        """
        self.refuse_options(target)
        known = supported_capabilities(trt)
        requested = target.compute_capabilities
        for capability in requested:
            if capability not in known:
                expected = ", ".join(known)
                raise BuildError(
                    f"tensorrt-rtx cannot build for compute capability {capability!r}, expected some of {expected}"
                )
            if requested.count(capability) > 1:
                raise BuildError(f"compute capability {capability!r} is named twice: name each GPU once")
        if requested:
            return tuple(sorted(requested, key=compute_capability_key))
        here = environment.current().compute_capability
        if here is not None:
            if here not in known:
                raise BuildError(
                    f"tensorrt-rtx does not serve this GPU (compute capability {here!r}, expected one of "
                    f"{', '.join(known)}): name others with compute_capabilities=, or use backend='tensorrt'"
                )
            return (here,)
        return tuple(capability for capability in known if capability not in ONLY_WHEN_NAMED)

    def configure(
        self, trt: Any, builder: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]
    ) -> None:
        """Name the GPUs one by one, also this machine's own: then the plan and its manifest say the same."""
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, enum_name(capability))
            if not config.set_compute_capability(member, index):
                raise BuildError(f"tensorrt-rtx refuses compute capability {capability!r} beside {capabilities!r}")

    def timing_cache(self, target: BuildTarget) -> Path | None:
        """Return None: it times nothing while it builds; what it compiles at load is kept by ``make_context``."""
        return None

    def refuse_options(self, target: BuildTarget) -> None:
        """Refuse what this library ignores or cannot do here, by name.

        Raises:
            BuildError: In one line, with the option.
        """
        for is_set, name, instead in (
            (
                target.hardware_compatibility != "none",
                "hardware_compatibility=",
                "name GPUs with compute_capabilities=",
            ),
            (target.version_compatible, "version_compatible=True", "build again after an update"),
            (target.dla_core is not None, "dla_core=", "use backend='tensorrt' on a board that has one"),
            (isinstance(target.timing_cache, Path), "timing_cache=", "it times nothing while it builds"),
            (target.optimization_level is not None, "optimization_level=", "it has one way to build"),
        ):
            if is_set:
                raise BuildError(f"tensorrt-rtx has no {name}: {instead}")
        if (target.refit or target.strip) and environment.current().gpu is None:
            option = "strip=True" if target.strip else "refit=True"
            raise BuildError(f"tensorrt-rtx needs a GPU to build with {option}, and there is none here")

    def notes(self, manifest: Manifest) -> tuple[str, ...]:
        return (WEIGHT_ONLY,) if quantizes_to_int8(manifest) else ()

    def keeps_precision(self, manifest: Manifest) -> bool:
        return not quantizes_to_int8(manifest)

    def version_mismatch(self, built: BuildInfo) -> str | None:
        if built.backend != self.name:
            return f"was built by {built.backend}, and {self.name} was requested"
        if built.version != self.version():
            return f"was built by {self.name} {built.version}, and {self.version()} is installed"
        return None

    def gpu_mismatch(self, built: BuildInfo) -> str | None:
        machine = environment.current()
        here = machine.compute_capability
        if here is None or here in built.compute_capabilities:
            return None
        wanted = ", ".join(built.compute_capabilities)
        return f"was built for compute capability {wanted}, here is {here} ({machine.gpu})"

    def request(self, engine: Engine, plan: bytes, options: SessionOptions) -> EngineRequest:
        """Return how a plan is run: checked before it is loaded, recorded by the library, with its kernels kept.

        The library compiles kernels when a context is made. They are kept per plan, GPU and driver, so that the next
        process need not compile them again.
        """
        trt = self.library()
        plain = super().request(engine, plan, options)
        contexts = _Contexts(trt, options, self.cache_file(plan) if options.cache else None)

        def deserialize(runtime: Any, data: bytes) -> Any:
            refuse_invalid(trt, runtime, data, engine.path)
            return plain.deserialize(runtime, data)

        return replace(
            plain,
            deserialize=deserialize,
            make_context=lambda _, opened: contexts.make(opened),
            captures=False,
            keep=contexts.keep,
        )

    def cache_file(self, plan: bytes) -> Path:
        """Return the file of the kernels that are compiled for a plan on this GPU."""
        machine = environment.current()
        digest = hashlib.sha256(plan).hexdigest()
        return cache_path("runtime", self.version(), digest, machine.gpu, machine.compute_capability, machine.driver)


class _Contexts:
    """Makes execution contexts of one engine, with one cache of compiled kernels for all of them."""

    def __init__(self, trt: Any, options: SessionOptions, path: Path | None) -> None:
        self._trt = trt
        self._graphs = options.cuda_graph
        self._path = path
        self._cache: Any = None
        self._before = b""

    def make(self, opened: Any) -> Any:
        """Return a context whose kernels are those of the given shapes, compiled before the first run.

        By default they would be compiled in the background and swapped in later, which would change a timing half-way.
        """
        trt = self._trt
        strategy = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategy is None:  # TensorRT-RTX before 1.1
            return opened.create_execution_context()
        runtime_config = opened.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
        graphs = getattr(trt, "CudaGraphStrategy", None)
        if graphs is not None and self._graphs:
            runtime_config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
        if self._path is not None:
            runtime_cache = self._cache or self._read(runtime_config)
            runtime_config.set_runtime_cache(runtime_cache)
            self._cache = runtime_cache
        return opened.create_execution_context(runtime_config)

    def keep(self) -> None:
        """Write the kernels that were compiled, where there are new ones."""
        if self._cache is None or self._path is None:
            return
        runtime_cache = self._cache
        held = bytes(runtime_cache.serialize())
        if held != self._before:
            write_cache(self._path, held, _silent)

    def _read(self, runtime_config: Any) -> Any:
        runtime_cache = runtime_config.create_runtime_cache()
        assert self._path is not None
        self._before = read_cache(self._path, _silent)
        if self._before:
            runtime_cache.deserialize(self._before)
        return runtime_cache


def _silent(text: str) -> None:
    """A cache that cannot be used costs time alone."""


def refuse_invalid(trt: Any, runtime: Any, plan: bytes, path: Path) -> None:
    """Ask the library whether a plan runs here, before it is loaded.

    Raises:
        BackendError: It does not; the line has the library's own reasons.
    """
    if not hasattr(trt, "EngineValidity"):  # TensorRT-RTX before 1.1
        return
    validity, bits = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return
    names = [one for one in dir(trt.EngineInvalidityDiagnostics) if one.isupper()]
    kinds = [name for name in names if int(bits) & int(getattr(trt.EngineInvalidityDiagnostics, name))]
    reasons = ", ".join(name.lower().replace("_", " ") for name in kinds) or "no reason given"
    raise BackendError(f"tensorrt-rtx cannot run {str(path)!r} here ({reasons}): build it again here with vd.build()")


def quantizes_to_int8(manifest: Manifest) -> bool:
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
