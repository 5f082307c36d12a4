"""How long each node takes under ONNX Runtime: its own profiler, in a session that does nothing else."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends.onnxruntime_kernels import open_and_save, sources_of
from vitdeploy.backends.session import Arrays
from vitdeploy.errors import BackendError
from vitdeploy.sessions import LayerTime, LayerTimes
from vitdeploy.text import one_line

KERNEL_TIME = "_kernel_time"
PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}


def profile(file: str, settings: Any, provider: str, feed: Arrays, *, warmup: int, iterations: int) -> LayerTimes:
    """Open a graph once more with the profiler on and return the kernel time of each node, per counted call.

    ``settings`` are SessionOptions of this call's own.

    Raises:
        BackendError: ONNX Runtime cannot open, run or profile it.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session, graph = open_and_save(file, settings, provider, Path(folder))
        sources = {str(node.name): sources_of(node) for node in graph if node.name}
        try:
            for _ in range(warmup + iterations):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise BackendError(f"onnxruntime failed while it was profiled: {one_line(error)}") from error
    return read_events(events, sources, iterations)


def read_events(
    events: Sequence[Mapping[str, Any]], sources: Mapping[str, tuple[str, ...]], iterations: int
) -> LayerTimes:
    """Return the layers of the last ``iterations`` calls from the events of a profile.

    An event of a node has the microseconds of its kernel in one call; a node in the body of a loop has several in a
    call, which are added.
    """
    runs = sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
    runs = runs[-iterations:]
    if len(runs) < iterations:
        raise BackendError(f"onnxruntime's profile has {len(runs)} calls of {iterations}: it keeps a million events")
    starts = [run["ts"] for run in runs]
    found: dict[str, LayerTime] = {}
    for event in events:
        name = str(event.get("name"))
        call = bisect_right(starts, event["ts"]) - 1
        if event.get("cat") != "Node" or not name.endswith(KERNEL_TIME) or call < 0:
            continue
        name = name.removesuffix(KERNEL_TIME)
        if name not in found:
            operator = str(event["args"]["op_name"])
            origin = sources.get(name, (name,))
            found[name] = LayerTime(name, operator, _precision(operator, event), origin, np.zeros(iterations))
        found[name].ms[call] += event["dur"] / 1000
    return LayerTimes(tuple(found.values()), np.array([run["dur"] / 1000 for run in runs]))


def _precision(operator: str, event: Mapping[str, Any]) -> str:
    from vitdeploy.graph.precisions import INTEGER_PRODUCTS

    if operator in INTEGER_PRODUCTS:
        return "int8"
    types = [kind for value in event["args"].get("output_type_shape", ()) for kind in value]
    return PRECISIONS.get(types[0], types[0]) if types else "unknown"
