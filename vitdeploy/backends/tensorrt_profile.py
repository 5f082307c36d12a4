"""How long each layer of an engine takes: what TensorRT reports to a profiler, beside what its inspector tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends.session import Arrays
from vitdeploy.backends.tensorrt_inspector import SOURCE, listed_layers, read_layer, types_of
from vitdeploy.errors import BackendError
from vitdeploy.sessions import LayerTime, LayerTimes

if TYPE_CHECKING:
    from vitdeploy.backends.tensorrt_session import Lane

REFORMAT = "Reformat"
CONVERT = "Convert"


def profile(
    trt: Any, lane: Lane, feed: Arrays, inspector_json: Callable[[], str], *, warmup: int, iterations: int
) -> LayerTimes:
    """Return the layers' times of ``iterations`` launches on a lane of their own, whose context gets a profiler.

    With a profiler each launch waits for the device and reports before it returns.

    Raises:
        BackendError: A launch fails, or nothing is reported.
    """
    context, profiler = lane.context, _profiler(trt)
    lane.load(feed)
    for _ in range(warmup):
        lane.launch()
    lane.stream.synchronize()
    context.profiler = profiler
    reports: list[list[tuple[str, float]]] = []
    calls = np.empty(iterations, np.float64)
    for index in range(iterations):
        profiler.reported.clear()
        start = time.perf_counter_ns()
        lane.launch()
        lane.stream.synchronize()
        calls[index] = (time.perf_counter_ns() - start) / 1e6
        reports.append(list(profiler.reported))
    if not any(reports):
        raise BackendError("the library reports no layer to its profiler, as where it launches CUDA graphs by itself")
    return LayerTimes(_layers(reports, _described(trt, inspector_json)), calls)


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Keeps what is reported: TensorRT calls it from inside a launch, and nothing may be raised there."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.reported: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.reported.append((layer_name, ms))

    return Profiler()


def _layers(
    reports: list[list[tuple[str, float]]], described: Mapping[str, tuple[str, str, tuple[str, ...]]]
) -> tuple[LayerTime, ...]:
    found: dict[str, LayerTime] = {}
    for index, report in enumerate(reports):
        for name, ms in report:
            if name not in found:
                operator, precision, sources = described.get(name, ("unknown", "unknown", (name,)))
                found[name] = LayerTime(name, operator, precision, sources, np.zeros(len(reports)))
            found[name].ms[index] += ms
    return tuple(found.values())


def _described(trt: Any, inspector_json: Callable[[], str]) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return layer → operator, precision, ONNX nodes; empty where the inspector is not there or tells names alone."""
    if not hasattr(trt, "EngineInspector"):
        return {}
    try:
        layers = listed_layers(inspector_json())
    except BackendError:
        return {}
    return {str(layer.get("Name")): _describe(layer) for layer in layers if isinstance(layer, dict)}


def _describe(layer: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    read, inputs, outputs = read_layer(layer), types_of(layer.get("Inputs")), types_of(layer.get("Outputs"))
    operator = str(layer.get("LayerType") or "unknown")
    if operator.lower() in ("reformat", "noop"):
        operator = CONVERT if inputs[:1] != outputs[:1] else REFORMAT
    known = read.precision if read is not None and read.precision is not None else None
    precision = known or next((kind for kind in (*outputs, *inputs) if kind != "integer"), "unknown")
    sources = tuple(dict.fromkeys(SOURCE.findall(str(layer.get("Metadata") or ""))))
    return operator, precision, sources or (str(layer.get("Name")),)
