"""The options of a build: checked, set on TensorRT's configuration, and written as a trtexec command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt_versions import parse_version
from vitdeploy.errors import BuildError, UsageError
from vitdeploy.sessions import BatchRange, BuildTarget, HardwareCompatibility, ProfilingVerbosity

MIB = 1 << 20
LEVELS = range(6)
HARDWARE: dict[HardwareCompatibility, str] = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}
TRTEXEC_HARDWARE: dict[HardwareCompatibility, str] = {
    "ampere-plus": "ampere+",
    "same-compute-capability": "sameComputeCapability",
}
VERBOSITIES: dict[ProfilingVerbosity, str] = {
    "detailed": "DETAILED",
    "layer-names": "LAYER_NAMES_ONLY",
    "none": "NONE",
}
TRTEXEC_VERBOSITIES: dict[ProfilingVerbosity, str] = {
    "detailed": "detailed",
    "layer-names": "layer_names_only",
    "none": "none",
}


def check_target(target: BuildTarget) -> None:
    """Refuse what contradicts itself, before any library is asked.

    Raises:
        UsageError: A batch range does not ascend, a profile is given twice, or an option has no such value.
    """
    if not target.profiles:
        raise UsageError("there is no batch size to build for")
    for low, best, high in target.profiles:
        if not 1 <= low <= best <= high:
            raise UsageError(f"batch {batch_text((low, best, high))!r}: expected 1 ≤ MIN ≤ OPT ≤ MAX")
    if len(set(target.profiles)) < len(target.profiles):
        raise UsageError(f"batch {batches_text(target.profiles)}: expected each profile once")
    if target.optimization_level is not None and target.optimization_level not in LEVELS:
        raise UsageError(f"optimization level {target.optimization_level!r}: expected 0 to {LEVELS[-1]}")
    if target.workspace_bytes is not None and target.workspace_bytes < 1:
        raise UsageError(f"workspace of {target.workspace_bytes!r} bytes: expected at least 1")
    if target.hardware_compatibility not in ("none", *HARDWARE):
        expected = ", ".join(("none", *HARDWARE))
        raise UsageError(f"hardware compatibility {target.hardware_compatibility!r}: expected one of {expected}")
    if target.profiling not in VERBOSITIES:
        raise UsageError(f"profiling {target.profiling!r}: expected one of {', '.join(VERBOSITIES)}")
    if target.dla_core is not None and target.dla_core < 0:
        raise UsageError(f"DLA core {target.dla_core!r}: expected 0 or more")
    if target.dla_core is not None and len({size for profile in target.profiles for size in profile}) > 1:
        raise UsageError(
            f"batch {batches_text(target.profiles)}: a deep-learning accelerator (DLA) runs one batch size, and layers "
            "with a range would run on the GPU: name one"
        )
    if target.dla_core is not None and target.hardware_compatibility != "none":
        raise UsageError("an engine for a DLA core runs on the board that builds it: leave out hardware compatibility")


def set_options(backend: str, trt: Any, config: Any, target: BuildTarget) -> None:
    """Set everything that both libraries share.

    Raises:
        BuildError: This release has no such option.
    """
    if target.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 layers would silently lose 13 bits
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, VERBOSITIES[target.profiling])
    if target.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_bytes)
    if target.optimization_level is not None:
        config.builder_optimization_level = target.optimization_level
    if target.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[target.hardware_compatibility], None)
        if level is None:
            raise BuildError(
                f"this {backend} has no hardware compatibility {target.hardware_compatibility!r}: it came with "
                f"TensorRT 10.9"
            )
        config.hardware_compatibility_level = level
    if target.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # host code in a plan would run with the user's rights
    if target.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if target.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def equivalent_command(
    backend: str, version: str, files: tuple[Path, Path], inputs: Mapping[str, Sequence[int]], target: BuildTarget
) -> str:
    """Return the command of NVIDIA's own tool that builds the same engine.

    Args:
        backend: ``tensorrt`` (trtexec) or ``tensorrt-rtx`` (tensorrt_rtx).
        version: Of the library: before 11, strong typing has to be asked for.
        files: The ONNX file and the engine.
        inputs: Name → shape of each input, −1 for a dynamic dimension.
        target: What was asked for; its compute capabilities are those that the engine was built for.
    """
    rtx = backend == "tensorrt-rtx"
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={files[0]}", f"--saveEngine={files[1]}", "--skipInference"]
    if not rtx and parse_version(version) < (11,):
        words.append("--stronglyTyped")
    dynamic = {name: shape for name, shape in inputs.items() if any(size < 0 for size in shape)}
    for index, profile in enumerate(target.profiles if dynamic else ()):
        if len(target.profiles) > 1:
            words.append(f"--profile={index}")
        for word, batch in zip(("min", "opt", "max"), profile, strict=True):
            shapes = ",".join(f"{name}:{_shape_text(shape, batch)}" for name, shape in dynamic.items())
            words.append(f"--{word}Shapes={shapes}")
    if not target.tf32:
        words.append("--noTF32")
    words.append(f"--profilingVerbosity={TRTEXEC_VERBOSITIES[target.profiling]}")
    if target.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{-(-target.workspace_bytes // MIB)}")
    if target.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={target.optimization_level}")
    if rtx and target.compute_capabilities:
        words.append(f"--computeCapabilities={','.join(one.replace('.', '') for one in target.compute_capabilities)}")
    if target.hardware_compatibility != "none":
        words.append(f"--hardwareCompatibilityLevel={TRTEXEC_HARDWARE[target.hardware_compatibility]}")
    words += ["--versionCompatible", "--excludeLeanRuntime"] if target.version_compatible else []
    words += ["--refit"] if target.refit else []
    words += ["--stripWeights"] if target.strip else []
    if target.dla_core is not None:
        words += [f"--useDLACore={target.dla_core}", "--allowGPUFallback"]
    return " ".join(map(shlex.quote, words))


def batch_text(batch: BatchRange) -> str:
    """Return ``MIN:OPT:MAX``, or one number where they are equal: what the command line takes."""
    return str(batch[0]) if len(set(batch)) == 1 else ":".join(map(str, batch))


def batches_text(profiles: Sequence[BatchRange]) -> str:
    """Return all profiles in the words of a message: ``'1' and '8:8:32'``."""
    return " and ".join(repr(batch_text(profile)) for profile in profiles)


def _shape_text(shape: Sequence[int], batch: int) -> str:
    return "x".join(str(batch if size < 0 else size) for size in shape)
