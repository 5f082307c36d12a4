"""``vitdeploy export``: an ONNX model of a PyTorch model or a foreign ONNX file, or a checkpoint of foreign weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitdeploy.cli.options import Json, Output, Seed

if TYPE_CHECKING:
    from vitdeploy.artifacts import Artifact


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint, a catalogue name, timm:NAME, hf:DIR, or an ONNX file to adopt."
        ),
    ],
    output: Output,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Weights of any make, for a model by name.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Fresh weights: to look at graph, size and speed only.")
    ] = False,
    argument: Annotated[
        list[str] | None,
        typer.Option("--argument", metavar="NAME=VALUE", help="Of a model by name, as in num_classes=10; repeatable."),
    ] = None,
    reset_head: Annotated[
        bool, typer.Option("--reset-head", help="Start the head anew where the number of classes differs.")
    ] = False,
    opset: Annotated[int, typer.Option("--opset", help="17 to 20.")] = 20,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="DATA", help="Store PyTorch's logits of it, for machines without torch."),
    ] = None,
    golden: Annotated[
        str | None, typer.Option("--golden", metavar="DATA", help="Where the samples come from that travel along.")
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option("--preprocess", metavar="timm:NAME|hf:DIR|FILE.json", help="To adopt an ONNX file: its input."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="A class name per line, if weights name none."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, checked against PyTorch, or adopt an ONNX file from elsewhere.

    An output called .safetensors gets the weights as a checkpoint of vitdeploy's.
    """
    from vitdeploy import ExportOptions, SourceOptions, convert
    from vitdeploy import export as to_onnx
    from vitdeploy.cli.output import print_artifact
    from vitdeploy.cli.values import parse_pairs
    from vitdeploy.errors import UsageError
    from vitdeploy.terminal_progress import make_progress

    arguments = parse_pairs("--argument", argument)
    common: dict[str, Any] = {
        "weights": weights,
        "random_weights": random_weights,
        "arguments": arguments,
        "reset_head": reset_head,
        "seed": seed,
        "labels": labels,
    }
    if output.suffix == ".safetensors":
        for option, value in {"--reference": reference, "--golden": golden, "--preprocess": preprocess}.items():
            if value is not None:
                raise UsageError(f"{option} is for ONNX files, and {str(output)!r} is a checkpoint: leave it out")
        made: Artifact = convert(source, output, options=SourceOptions(**common), progress=make_progress())
    else:
        options = ExportOptions(opset=opset, reference=reference, golden=golden, preprocess=preprocess, **common)
        made = to_onnx(source, output, options=options, progress=make_progress())
    print_artifact(made, as_json)
