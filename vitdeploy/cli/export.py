"""``vitdeploy export``: an ONNX model of a PyTorch model or a foreign ONNX file."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vitdeploy.cli.options import (
    Json,
    Labels,
    ModelArguments,
    Output,
    PreprocessName,
    RandomWeights,
    ResetHead,
    Seed,
    TaskName,
    Weights,
)


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint, a catalogue name, timm:NAME, hf:DIR, or an ONNX file to adopt."
        ),
    ],
    output: Output,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    arguments: ModelArguments = None,
    reset_head: ResetHead = False,
    opset: Annotated[int, typer.Option("--opset", help="17 to 20.")] = 20,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="DATA", help="Store PyTorch's logits of it, for machines without torch."),
    ] = None,
    golden: Annotated[
        str | None,
        typer.Option(
            "--golden",
            metavar="DATA",
            help="Data from which the golden samples are drawn.",
            show_default="that of --reference, else random pixels",
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(
            "--output-name", metavar="NAME", help="The output that holds the logits, where an ONNX file has several."
        ),
    ] = None,
    fuse_preprocess: Annotated[
        Literal["nhwc", "nchw"] | None,
        typer.Option("--fuse-preprocess", help="Take pixels as uint8 of this layout and normalise them in the graph."),
    ] = None,
    fuse_resize: Annotated[
        str | None,
        typer.Option(
            "--fuse-resize",
            metavar="HxW|any",
            help="Take whole images of this size, or of any, and resize and crop them in the graph too.",
        ),
    ] = None,
    preprocess: PreprocessName = None,
    labels: Labels = None,
    task: TaskName = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, checked against PyTorch, or adopt an ONNX file from elsewhere."""
    from vitdeploy import ExportOptions
    from vitdeploy import export as to_onnx
    from vitdeploy.cli.output import make_progress, print_artifact
    from vitdeploy.cli.values import parse_frame, parse_pairs
    from vitdeploy.errors import UsageError

    if output.suffix == ".safetensors":
        raise UsageError(f"{str(output)!r} is the name of a checkpoint: 'vitdeploy convert' writes one, export ONNX")
    options = ExportOptions(
        weights=weights,
        random_weights=random_weights,
        arguments=parse_pairs("--model-arg", arguments),
        reset_head=reset_head,
        seed=seed,
        labels=labels,
        opset=opset,
        reference=reference,
        golden=golden,
        preprocess=preprocess,
        output_name=output_name,
        fuse_preprocess=fuse_preprocess,
        fuse_resize=parse_frame("--fuse-resize", fuse_resize),
        task=task,
    )
    print_artifact(to_onnx(source, output, options=options, progress=make_progress()), as_json)
