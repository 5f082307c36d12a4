"""Graphs that were lowered: made of one runtime's own operators, for it and for the processor of this machine."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.errors import BackendError, GraphError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.preprocess import to_input
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Check, Lowering
from vitdeploy.records.report import backend_title

MEASURED_WITH = ("1.32",)
"""Releases of ONNX Runtime with which lowered graphs were measured to be faster, and to give the same logits."""


LEAST_SQNR_DB = 60.0
"""What the logits of a lowered graph must keep of those of the portable one."""


def lowered_path(portable: Path) -> Path:
    """Return ``vit.lowered.onnx`` for ``vit.onnx``."""
    return portable.with_name(f"{portable.stem}.lowered.onnx")


def lower(portable: OnnxModel, progress: Progress = SILENT) -> OnnxModel | None:
    """Write a graph beside a portable one, with ONNX Runtime's own operators, and hold its logits against that one's.

    None, with a note, where ONNX Runtime has a release that this was not measured with, or nothing is to be lowered.

    Raises:
        GraphError: The logits on the golden samples differ.
    """
    from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend, cpu_opener
    from vitdeploy.graph.lower_integer_matmuls import LowerIntegerMatMuls

    version, path = OnnxRuntimeBackend().version(), lowered_path(portable.path)
    if release_of(version) not in MEASURED_WITH:
        measured = " and ".join(MEASURED_WITH)
        progress.note(f"{path.name} was not written: lowering was measured with ONNX Runtime {measured}, not {version}")
        return None
    graph = portable.load()
    if not LowerIntegerMatMuls()(graph).modified:
        progress.note(f"{path.name} was not written: no integer product of {portable.path.name} has a constant bias")
        return None
    lowering = Lowering(runtime="onnxruntime", version=version, cpu=environment.cpu_name(), portable=portable.path.name)
    golden, preprocess = portable.golden, portable.manifest.preprocess
    name, renewed = "logits SQNR of the portable graph", None
    check = Check(name=name, status="unchecked", unit="dB", detail="the graph has no golden samples")
    if golden is not None and preprocess is not None:
        images, opener = to_input(golden.pixels, preprocess), cpu_opener(1)
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


def release_of(version: str) -> str:
    """Return ``1.32`` of ``1.32.0``."""
    return ".".join(version.split(".")[:2])


def refuse_lowered(model: OnnxModel, backend: str, version: str) -> None:
    """Pass what was not lowered, and what was for this runtime, its release and this processor.

    Raises:
        BackendError: It was lowered for another; the message names the graph that runs anywhere.
    """
    lowered = model.manifest.lowered
    if lowered is None:
        return
    here, cpu = f"{backend_title(backend)} {version}", environment.cpu_name()
    lowering = (lowered.runtime, release_of(lowered.version), lowered.cpu)
    if lowering != (backend, release_of(version), cpu):
        raise BackendError(
            f"{str(model.path)!r} was lowered for {backend_title(lowered.runtime)} {lowered.version} on "
            f"{lowered.cpu}, and this is {here} on {cpu}: take {lowered.portable!r}, which it was made from"
        )
