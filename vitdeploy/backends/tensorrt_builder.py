"""From an ONNX file to a serialized TensorRT plan.

Every name of TensorRT's interface is one that 10.3 to 11.4 and TensorRT-RTX have, or is guarded. ``trt`` is the module,
``tensorrt`` or ``tensorrt_rtx``: it is passed on, so that both can be used in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt_caches import read_cache, write_cache
from vitdeploy.backends.tensorrt_monitor import (
    BuildState,
    Messages,
    build_monitor,
    clean_message,
    listening_logger,
    run_watched,
    started,
)
from vitdeploy.backends.tensorrt_options import batch_text, batches_text, set_options
from vitdeploy.errors import BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.sessions import BuildTarget
from vitdeploy.text import one_line

Configure = Callable[[Any, Any], None]


@dataclass(frozen=True)
class PlanRequest:
    """What to build from.

    backend: Named in messages.
    trt: The library's module.
    path: The ONNX file; external data lies beside it.
    target: Profiles, workspace, TF32 and the other options; checked.
    configure: Called with the builder and its configuration, for what only one of the libraries has.
    timing_cache: The file of kernel timings; None for none.
    """

    backend: str
    trt: Any
    path: Path
    target: BuildTarget
    configure: Configure
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A serialized engine, the shape of each input of its graph (−1 for the batch), and what the builder warned of."""

    data: bytes
    inputs: dict[str, tuple[int, ...]]
    warnings: tuple[str, ...] = ()


def build_plan(request: PlanRequest, progress: Progress = SILENT) -> Plan:
    """Return the serialized engine.

    The whole of TensorRT's work is done in one thread of its own: CUDA's current device belongs to a thread, and a
    builder has to run where it was made.

    Raises:
        BackendError: The builder cannot start: CUDA does not.
        BuildError: The parser refuses a node, the batch does not fit the graph, or the builder gives up; one line.
        KeyboardInterrupt: The user stopped it; the builder has ended.
    """
    state, notes = BuildState(), Notes()
    work = _Work(request, state, notes)
    plan = run_watched(work, state, progress, f"build {request.path.name}")
    for text in notes.kept:
        progress.note(text)
    for warning in plan.warnings:
        progress.note(f"{request.backend}: {one_line(warning, 200)}")
    return plan


class Notes:
    """What the builder's thread has to say; the thread that asked for the build says it."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def __call__(self, text: str) -> None:
        self.kept.append(text)


class _Work:
    """One build, as the builder's thread does it."""

    def __init__(self, request: PlanRequest, state: BuildState, note: Callable[[str], object]) -> None:
        self.request = request
        self.state = state
        self.note = note

    def __call__(self) -> Plan:
        request, trt = self.request, self.request.trt
        logger, messages = listening_logger(trt)
        mark = messages.mark()
        builder = started(trt.Builder, logger, messages, f"the builder of {request.backend}")
        network = builder.create_network(network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(request.path)):
            raise BuildError(parse_failure(request, parser))
        config = builder.create_builder_config()
        set_options(request.backend, trt, config, request.target)
        request.configure(builder, config)
        inputs = add_profiles(request, builder, network, config)
        self.load_timings(config, messages)
        monitor = build_monitor(trt, self.state)  # a local, so that it outlives the build
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(build_failure(request, messages.first_error(mark)))
        self.keep_timings(config)
        return Plan(bytes(plan), inputs, tuple(messages.warnings(mark)))

    def load_timings(self, config: Any, messages: Messages) -> None:
        """Give the builder the timings that earlier builds kept; none that were taken on another machine."""
        path = self.request.timing_cache
        if path is None:
            return
        timing_cache = config.create_timing_cache(read_cache(path, self.note))
        if timing_cache is None or not config.set_timing_cache(timing_cache, False):
            self.note(f"the timing cache {str(path)!r} is of another TensorRT or GPU: it is left out and written anew")
            timing_cache = config.create_timing_cache(b"")
            config.set_timing_cache(timing_cache, False)

    def keep_timings(self, config: Any) -> None:
        path = self.request.timing_cache
        if path is not None:
            timing_cache = config.get_timing_cache()
            write_cache(path, bytes(timing_cache.serialize()), self.note)


def network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network.

    By name: the number of STRONGLY_TYPED differs between 10 and 11, where the same bit means something else.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse_failure(request: PlanRequest, parser: Any) -> str:
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


def build_failure(request: PlanRequest, reason: str) -> str:
    """Return one line with the builder's first error and, where it is a known one, what to do."""
    text = f"{request.backend} cannot build {str(request.path)!r}: {one_line(reason) or 'it gave no reason'}"
    if "fp8" in reason.lower() and "target" in reason:
        return f"{text}: FP8 needs compute capability 8.9 or higher"
    if "SM" in reason and "not supported" in reason:
        return f"{text}: vd.doctor() compares GPU and library"
    if "workspace limit" in reason:
        return f"{text}: raise workspace_bytes=, or leave it out"
    if "memory" in reason.lower():
        return f"{text}: free GPU memory, or lower workspace_bytes="
    return text


def add_profiles(request: PlanRequest, builder: Any, network: Any, config: Any) -> dict[str, tuple[int, ...]]:
    """Add one profile per batch range; equal numbers give an engine of one batch size. Return the inputs' shapes.

    Raises:
        BuildError: A dimension other than the first is dynamic, or the graph's batch is fixed to another number.
    """
    profiles = request.target.profiles
    inputs: dict[str, tuple[int, ...]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        inputs[str(tensor.name)] = _input_shape(request, str(tensor.name), tuple(map(int, tensor.shape)))
    dynamic = {name: shape for name, shape in inputs.items() if shape[0] < 0}
    for batch in profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for name, shape in dynamic.items():
            profile.set_shape(name, *((size, *shape[1:]) for size in batch))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{request.backend} refuses the batch range {batch_text(batch)!r}")
    return inputs


def _input_shape(request: PlanRequest, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if any(size < 0 for size in shape[1:]):
        raise BuildError(
            f"input {name!r} of {str(request.path)!r} has shape {shape!r}, but only the batch may be dynamic: "
            "export it again at a fixed image size, where the graph resizes images with "
            "vd.export(..., options=vd.ExportOptions(fuse_resize=(480, 640)))"
        )
    wanted = {size for profile in request.target.profiles for size in profile}
    if shape[0] >= 0 and wanted != {shape[0]}:
        raise BuildError(
            f"{str(request.path)!r} has the fixed batch {shape[0]}, and the target has "
            f"{batches_text(request.target.profiles)}: build with batch={(shape[0],) * 3}, or export it with a dynamic "
            "batch"
        )
    return shape
