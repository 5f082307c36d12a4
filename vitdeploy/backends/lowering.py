"""Lower a graph for ONNX Runtime on the processor of this machine: the steps that gain there, each measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.backends.lowered import lowered_path, release_of
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend, cpu_opener
from vitdeploy.errors import GraphError
from vitdeploy.graph.divide_products import DivideProducts
from vitdeploy.graph.fuse_transposed_factors import FuseTransposedFactors
from vitdeploy.graph.lower_integer_matmuls import LowerIntegerMatMuls
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.pairs import gains, pair_timer, speeds_text
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.preprocess import to_input
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Check, Lowering

MEASURED_WITH = ("1.32",)
"""Releases of ONNX Runtime with which lowered graphs were measured to be faster, and to give the same logits."""

LEAST_SQNR_DB = 60.0
"""What the logits of a lowered graph must keep of those of the portable one."""

STEPS: tuple[tuple[str, Callable[[], ir.passes.InPlacePass]], ...] = (
    ("biases inside the integer products", LowerIntegerMatMuls),
    ("q, k and v as products of their own", DivideProducts),
    ("products that take k as it is", FuseTransposedFactors),
)
"""What is tried, each on what was kept of those before it."""


def lower(portable: OnnxModel, progress: Progress = SILENT, *, threads: int = 0) -> OnnxModel | None:
    """Write a graph beside a portable one, with ONNX Runtime's own operators, and hold its logits against that one's.

    Each of ``STEPS`` is kept where it is faster on this machine. None, with a note, where ONNX Runtime has a release
    that this was not measured with, or no step gains.

    Args:
        portable: A quantized graph for ONNX Runtime.
        progress: Told what was kept.
        threads: CPU threads that it is timed with, 0 for all.
    Raises:
        GraphError: The logits on the golden samples differ.
    """
    version, path = OnnxRuntimeBackend().version(), lowered_path(portable.path)
    earlier = f"; {path.name} as it is there was made of an earlier graph" if path.exists() else ""
    if release_of(version) not in MEASURED_WITH:
        measured = " and ".join(MEASURED_WITH)
        reason = f"lowering was measured with ONNX Runtime {measured}, not {version}"
        progress.note(f"{path.name} was not written: {reason}{earlier}")
        return None
    pixels, preprocess = pixels_of(portable), portable.manifest.preprocess
    assert preprocess is not None
    processor = "any" if portable.manifest.plan is None else portable.manifest.plan.cpu
    images = to_input(pixels, preprocess)
    graph, kept, timed = portable.load(), list[str](), pair_timer(cpu_opener(threads, processor), images, progress)
    for title, make in STEPS:
        changed = graph.clone()
        if not make()(changed).modified:
            continue
        speeds = timed(graph, changed)
        progress.note(f"{title}: {speeds_text(speeds)}, {'kept' if gains(speeds) else 'left out'}")
        if gains(speeds):
            graph = changed
            kept.append(title)
    if not kept:
        reason = f"no step makes {portable.path.name} faster on this machine"
        progress.note(f"{path.name} was not written: {reason}{earlier}")
        return None
    lowering = Lowering(
        runtime="onnxruntime",
        version=version,
        cpu=environment.cpu_name(),
        integers=environment.cpu_integers(),
        portable=portable.path.name,
        steps=tuple(kept),
    )
    golden = portable.golden
    name, renewed = "logits SQNR of the portable graph", None
    check = Check(name=name, status="unchecked", unit="dB", detail="the graph has no golden samples")
    if golden is not None:
        opener = cpu_opener(1, processor)
        with opener(portable.load()) as before, opener(graph) as after:
            old, new = run_batch(before, images), run_batch(after, images)
        found = logits_sqnr_db(new, old)
        if not found >= LEAST_SQNR_DB:
            raise GraphError(
                f"the lowered graph keeps {found:.1f} dB of {portable.path.name}, expected {LEAST_SQNR_DB:g}"
            )
        detail = f"on {len(images)} golden samples"
        value = found if found != float("inf") else None
        detail += ": equal bit for bit" if value is None else ""
        check = Check(name=name, status="passed", value=value, limit=LEAST_SQNR_DB, unit="dB", detail=detail)
        renewed = Golden(golden.pixels, golden.reference, new)
    manifest = portable.manifest.model_copy(
        update={"lowered": lowering, "parents": {"portable": portable.digest}, "checks": (check,)}
    )
    progress.note(
        f"wrote {path.name} for ONNX Runtime {version} on {lowering.cpu}: bench it beside {portable.path.name}"
    )
    return write_onnx(path, graph, manifest, renewed)


def pixels_of(model: OnnxModel) -> NDArray[np.uint8]:
    """Return images of the model's size, [n, H, W, C]: its golden samples, else noise."""
    preprocess = model.manifest.preprocess
    if model.golden is not None:
        return model.golden.pixels
    assert preprocess is not None
    size = preprocess.pixel_size or preprocess.resized_to
    return np.random.default_rng(0).integers(0, 256, (1, *size, preprocess.channels), np.uint8)
