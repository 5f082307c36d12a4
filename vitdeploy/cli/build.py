"""``vitdeploy build``: an engine from a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitdeploy.cli.options import Json, Output

MIB = 1 << 20


def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32, FP16, INT8 or FP8 graph.")],
    output: Output,
    backend: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        typer.Option("--backend", help="Default: tensorrt where it is installed and has a GPU, else tensorrt-rtx."),
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N|MIN:OPT:MAX", help="Batch sizes that the engine takes.")
    ] = "1",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability", metavar="X.Y", help="A GPU to build for, as in 8.9; repeatable (tensorrt-rtx)."
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None, typer.Option("--workspace-mib", min=1, help="Most device memory that building may take.")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 layers use TF32.")] = False,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine; with tensorrt-rtx also ahead of time, on a machine without a GPU."""
    from vitdeploy import build as build_engine
    from vitdeploy.cli.output import print_artifact
    from vitdeploy.sessions import BuildTarget, batch_range
    from vitdeploy.terminal_progress import make_progress

    target = BuildTarget(
        batch=batch_range(batch),
        compute_capabilities=tuple(compute_capability or ()),
        workspace_bytes=None if workspace_mib is None else workspace_mib * MIB,
        tf32=tf32,
    )
    engine = build_engine(model, output, backend=backend, target=target, progress=make_progress())
    info = engine.manifest.build
    summary = []
    if info is not None:
        low, best, high = info.batch
        takes = f"batch {low}" if low == high else f"batch {low} to {high}, tuned for {best}"
        made_for = ", ".join(info.compute_capabilities) or info.gpu or "this GPU"
        summary = [f"{info.backend} {info.version}, {takes}, for {made_for}", *info.notes]
    print_artifact(engine, as_json, summary)
