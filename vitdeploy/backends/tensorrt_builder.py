"""From an ONNX file to a serialized TensorRT plan.

Every name of TensorRT's interface is one that 10.3 to 11.1 and TensorRT-RTX have, or is guarded. ``trt`` is the module,
``tensorrt`` or ``tensorrt_rtx``: it is passed on, so that both can be used in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt_monitor import BuildState, build_monitor, clean_message, listening_logger, run_watched
from vitdeploy.errors import BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.sessions import BuildTarget
from vitdeploy.text import one_line

Configure = Callable[[Any], None]


@dataclass(frozen=True)
class BuildRequest:
    """What to build from.

    backend: Named in messages.
    trt: The library's module.
    path: The ONNX file; external data lies beside it.
    target: Batch, workspace, TF32 and the options of ``OPTIONS``.
    configure: Called with the builder's configuration, for what only one of the libraries has.
    """

    backend: str
    trt: Any
    path: Path
    target: BuildTarget
    configure: Configure


def build_plan(request: BuildRequest, progress: Progress = SILENT) -> bytes:
    """Return the serialized engine.

    Raises:
        BuildError: The parser refuses a node, the batch does not fit the graph, or the builder gives up; one line.
        KeyboardInterrupt: The user stopped it; the builder has ended.
    """
    trt = request.trt
    logger, messages = listening_logger(trt)
    messages.clear()
    builder = trt.Builder(logger)
    if builder is None:
        raise BuildError(f"{request.backend} could not start its builder: {messages.first_error()}")
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(request.path)):
        raise BuildError(parse_failure(request, parser))
    config = builder.create_builder_config()
    _configure(request, config)
    _add_profile(request, builder, network, config)
    state = BuildState()
    monitor = build_monitor(trt, state)  # a local, so that it outlives the build
    config.progress_monitor = monitor
    plan = run_watched(
        lambda: builder.build_serialized_network(network, config), state, progress, f"build {request.path.name}"
    )
    if plan is None:
        raise BuildError(build_failure(request, messages.first_error()))
    for warning in messages.warnings():
        progress.note(f"{request.backend}: {one_line(warning, 200)}")
    return bytes(plan)


def network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network.

    By name: the number of STRONGLY_TYPED differs between 10 and 11, where the same bit means something else.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse_failure(request: BuildRequest, parser: Any) -> str:
    """Return one line that names the first node that the parser refused, its operator and the reason."""
    for index in range(parser.num_errors):
        refusal = parser.get_error(index)
        reason = clean_message(refusal.desc())
        if reason == "false" or not reason:
            reason = "TensorRT does not support this operator"
        elif "Plugin not found" in reason:
            reason = "TensorRT has neither this operator nor a plugin of that name"
        if refusal.node_operator():
            where = f"node {(refusal.node_name() or refusal.node())!r} ({refusal.node_operator()})"
            return f"{request.backend} cannot build {str(request.path)!r}: {where}: {one_line(reason)}"
        return f"{request.backend} cannot parse {str(request.path)!r}: {one_line(reason)}"
    return f"{request.backend} cannot parse {str(request.path)!r}"


def build_failure(request: BuildRequest, reason: str) -> str:
    """Return one line with the builder's first error and, where it is a known one, what to do."""
    text = f"{request.backend} cannot build {str(request.path)!r}: {one_line(reason) or 'it gave no reason'}"
    if "fp8" in reason.lower() and "target" in reason:
        return f"{text}: FP8 needs compute capability 8.9 or higher"
    if "SM" in reason and "not supported" in reason:
        return f"{text}: 'vitdeploy doctor' compares GPU and library"
    if "memory" in reason.lower():
        return f"{text}: free GPU memory, or lower --workspace-mib"
    return text


def _configure(request: BuildRequest, config: Any) -> None:
    trt, target = request.trt, request.target
    if target.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: FP32 layers would silently lose 13 bits
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector tells precisions only then
    if target.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_bytes)
    for name, value in target.options.items():
        _set_option(request, config, name, value)
    request.configure(config)


def _set_option(request: BuildRequest, config: Any, name: str, value: str) -> None:
    if name == "optimization_level" and value in ("0", "1", "2", "3", "4", "5"):
        config.builder_optimization_level = int(value)
    elif name == "hardware_compatibility" and value in ("none", "ampere_plus", "same_compute_capability"):
        level = getattr(request.trt.HardwareCompatibilityLevel, value.upper(), None)
        if level is None:
            raise BuildError(
                f"this {request.backend} has no hardware_compatibility={value!r}: it came with TensorRT 10.9"
            )
        config.hardware_compatibility_level = level
    elif name == "version_compatible" and value in ("true", "false"):
        if value == "true":
            config.set_flag(request.trt.BuilderFlag.VERSION_COMPATIBLE)
    else:
        raise BuildError(
            f"{request.backend} has no option {name}={value!r}, expected optimization_level=0…5, "
            f"hardware_compatibility=none|ampere_plus|same_compute_capability or version_compatible=true|false"
        )


def _add_profile(request: BuildRequest, builder: Any, network: Any, config: Any) -> None:
    """Fix each dynamic input to the range that was asked for; equal numbers give an engine of one batch size.

    Raises:
        BuildError: A dimension other than the first is dynamic, or the graph's batch is fixed to another number.
    """
    target, dynamic = request.target, False
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape[1:]):
            raise BuildError(
                f"input {tensor.name!r} of {str(request.path)!r} has shape {shape!r}, but only the batch may be "
                f"dynamic: export it again at a fixed image size"
            )
        if shape[0] >= 0:
            if any(batch != shape[0] for batch in target.batch):
                raise BuildError(
                    f"{str(request.path)!r} has the fixed batch {shape[0]}, asked was {batch_text(target.batch)!r}: "
                    f"build with --batch {shape[0]}, or export it with a dynamic batch"
                )
            continue
        dynamic = True
        profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in target.batch))
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise BuildError(f"{request.backend} refuses the batch range {batch_text(target.batch)!r}")


def batch_text(batch: tuple[int, int, int]) -> str:
    """Return ``MIN:OPT:MAX``, or one number where they are equal: what ``--batch`` takes."""
    return str(batch[0]) if len(set(batch)) == 1 else ":".join(map(str, batch))
