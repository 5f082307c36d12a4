"""The Typer application: the root options, and every command in the order of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vitdeploy import __version__
from vitdeploy.cli import (
    bench,
    build,
    calibration,
    compare,
    convert,
    diff,
    doctor,
    export,
    inspect,
    models,
    package,
    predict,
    quantize,
    run,
    sensitivity,
    train,
    verify,
)

app = typer.Typer(
    name="vitdeploy",
    help="Train or load a vision transformer, export it to ONNX, quantize it, build an engine, and report accuracy and "
    "latency against PyTorch.",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 a gate such as --max-drop failed, 130 interrupted.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # plain help: the same on a terminal and in a log, and nothing to load for it
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and Python's warnings; goes anywhere.")
    ] = False,
) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


EXAMPLES = {
    "run": "vitdeploy run --data ./photos --output photos-run",
    "train": "vitdeploy train ./photos -o vit.safetensors --model vit_tiny_patch16_224",
    "convert": "vitdeploy convert deit_small_patch16_224 --weights deit_small.pth -o deit.safetensors",
    "export": "vitdeploy export timm:vit_small_patch16_224 -o vit.onnx --reference ./photos:test",
    "quantize": "vitdeploy quantize vit.onnx -o vit.int8.onnx --precision int8 --calibration ./photos:train",
    "sensitivity": "vitdeploy sensitivity vit.onnx --calibration ./photos:train --data ./photos:validation -o vit.json",
    "build": "vitdeploy build vit.int8.onnx -o vit.engine --batch 1:8:32",
    "bench": "vitdeploy bench vit.onnx vit.int8.onnx vit.engine --data ./photos:test --report report",
    "compare": "vitdeploy compare last-week/report.json report/report.json --max-drop 0.5",
    "diff": "vitdeploy diff vit.onnx vit.int8.onnx --data ./photos:test",
    "package": "vitdeploy package vit.int8.engine vit.int8.onnx -o vit.bundle --report report",
    "predict": "vitdeploy predict vit.int8.onnx photo.jpg",
    "inspect": "vitdeploy inspect vit.engine",
    "verify": "vitdeploy verify vit.int8.onnx",
    "models": "vitdeploy models 'swin*'",
    "doctor": "vitdeploy doctor",
}
"""The commonest call of each command, at the foot of its help."""


def _add(name: str, function: Callable[..., None], summary: str) -> None:
    app.command(name, short_help=summary, epilog=f"Example: {EXAMPLES[name]}")(function)


_add("run", run.run, "Run the whole pipeline, skipping what is fresh.")
_add("train", train.train, "Train a checkpoint on data.")
_add("convert", convert.convert, "Convert weights of any dialect to a checkpoint.")
_add("export", export.export, "Export a model to ONNX; adopt a foreign ONNX file.")
_add("quantize", quantize.quantize, "Quantize an FP32 graph to FP16, INT8 or FP8.")
_add("sensitivity", sensitivity.sensitivity, "Find the parts of a graph that cause its quantization error.")
_add("build", build.build, "Build a TensorRT engine from an ONNX graph.")
_add("bench", bench.bench, "Measure accuracy and latency, side by side.")
_add("compare", compare.compare, "Compare two reports, with limits.")
_add("diff", diff.diff, "Compare two artifacts tensor by tensor.")
app.add_typer(calibration.app, name="calibration", short_help="Make, show and check calibration sets.")
_add("package", package.package, "Package graphs and engines as a bundle for devices.")
_add("predict", predict.predict, "Predict the classes of images.")
_add("inspect", inspect.inspect, "Show what a file holds.")
_add("verify", verify.verify, "Check that an artifact is intact and computes what it did.")
_add("models", models.models, "List the models that can be named.")
_add("doctor", doctor.doctor, "Show what this machine can run.")
