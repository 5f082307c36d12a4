"""The Typer application: the root options, and every command in the order of the pipeline."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy import __version__
from vitdeploy.cli import (
    bench,
    build,
    calibration,
    compare,
    doctor,
    export,
    inspect,
    models,
    predict,
    quantize,
    run,
    train,
    verify,
)

app = typer.Typer(
    name="vitdeploy",
    help="Train or load a vision transformer, export it to ONNX, quantize it, build an engine, prove what it kept.",
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


app.command("run", short_help="The whole pipeline, skipping what is fresh.")(run.run)
app.command("train", short_help="From data to a checkpoint.")(train.train)
app.command("export", short_help="From a model to ONNX; adopt a foreign ONNX file.")(export.export)
app.command("quantize", short_help="From FP32 to FP16, INT8 or FP8.")(quantize.quantize)
app.command("build", short_help="From ONNX to a TensorRT engine.")(build.build)
app.command("bench", short_help="Accuracy and latency, side by side.")(bench.bench)
app.command("compare", short_help="Two reports, with limits.")(compare.compare)
app.add_typer(calibration.app, name="calibration", short_help="Make, show and check calibration sets.")
app.command("predict", short_help="The classes of some images.")(predict.predict)
app.command("inspect", short_help="What a file is.")(inspect.inspect)
app.command("verify", short_help="Whether an artifact is what it says.")(verify.verify)
app.command("models", short_help="The models that can be named.")(models.models)
app.command("doctor", short_help="What this machine can do.")(doctor.doctor)
