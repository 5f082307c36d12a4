"""``vitdeploy build``: an engine from a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitdeploy.cli.flags import in_flags
from vitdeploy.cli.options import Gpu, Json, On, Output

if TYPE_CHECKING:
    from vitdeploy.records import BuildInfo

MIB = 1 << 20


def _bytes_of(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB


def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32, FP16, INT8 or FP8 graph.")],
    output: Output,
    backend: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        typer.Option(
            "--backend", help="What builds and runs it.", show_default="tensorrt where it has a GPU, else tensorrt-rtx"
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            metavar="N|MIN:OPT:MAX",
            help="Batch sizes of the engine; several, also with commas, make one engine with a profile for each.",
            show_default="1",
        ),
    ] = None,
    compute_capabilities: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="A GPU to build for, as in 8.9; repeatable (tensorrt-rtx).",
            show_default="this GPU's, else Ampere and newer",
        ),
    ] = None,
    gpu: Gpu = None,
    workspace_bytes: Annotated[
        int | None,
        typer.Option(
            "--workspace-mib",
            min=1,
            callback=_bytes_of,
            help="Most scratch memory that a kernel may use, building and running.",
            show_default="all of the GPU's",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level", min=0, max=5, help="0 builds fastest, 5 searches longest.", show_default="3"
        ),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 layers use TF32.")] = False,
    hardware_compatibility: Annotated[
        Literal["none", "ampere-plus", "same-compute-capability"],
        typer.Option("--hardware-compatibility", help="GPUs that the engine runs on beside this model (slower)."),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Runs under newer TensorRT, and under its lean runtime (44 MB)."),
    ] = False,
    profiling: Annotated[
        Literal["detailed", "layer-names", "none"],
        typer.Option("--profiling", help="detailed to measure; layer-names to ship, which reveals less."),
    ] = "detailed",
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave the weights out; they come from the ONNX file when it is opened.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Let weights be replaced later.")] = False,
    dla_core: Annotated[
        int | None, typer.Option("--dla-core", min=0, metavar="N", help="Run on this accelerator of a Jetson AGX Orin.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache", metavar="FILE", help="Kernel timings to read and renew.", show_default="kept per GPU"
        ),
    ] = None,
    no_timing_cache: Annotated[bool, typer.Option("--no-timing-cache", help="Time every kernel again.")] = False,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine; with tensorrt-rtx also ahead of time, on a machine without a GPU."""
    from vitdeploy.cli.output import make_progress, print_artifact
    from vitdeploy.cli.values import choose_gpu
    from vitdeploy.errors import UsageError
    from vitdeploy.sessions import BuildTarget, batch_profiles
    from vitdeploy.stages.build import BuildRequest

    if timing_cache is not None and no_timing_cache:
        raise UsageError("--timing-cache and --no-timing-cache contradict each other: leave one of the two out")
    choose_gpu(gpu, on)
    target = BuildTarget(
        batch=batch_profiles(batch or ["1"]),
        compute_capabilities=tuple(compute_capabilities or ()),
        workspace_bytes=workspace_bytes,
        tf32=tf32,
        optimization_level=optimization_level,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        profiling=profiling,
        refit=refit,
        strip=strip,
        dla_core=dla_core,
        timing_cache="off" if no_timing_cache else timing_cache or "kept",
    )
    if on is not None:
        from vitdeploy import Remote

        engine = Remote(on).build(model, output, backend=backend, target=target, progress=make_progress())
        print_artifact(engine, as_json, [] if engine.manifest.build is None else describe(engine.manifest.build))
        return
    request = BuildRequest.open(model, output, backend=backend, target=target)
    engine = request.run(make_progress())
    info = engine.manifest.build
    summary = [] if info is None else [*describe(info), f"the same: {request.equivalent_command(engine)}"]
    print_artifact(engine, as_json, summary)


def describe(info: BuildInfo) -> list[str]:
    """Return what was built, in lines."""
    takes = " and ".join(
        f"batch {low}" if low == high else f"batch {low} to {high}, tuned for {best}"
        for low, best, high in info.profiles or (info.batch,)
    )
    gpus = ", ".join(info.compute_capabilities) or info.gpu or "this GPU"
    return [f"{info.backend} {info.version}, {takes}, for {gpus}", *map(in_flags, info.notes)]
