"""``vitdeploy predict``: the classes of some images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Device, Json


def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A checkpoint, an ONNX model or an engine.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes of each image.")] = 5,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print the most likely classes of each image, with their probabilities."""
    from vitdeploy import SessionOptions
    from vitdeploy import predict as classify
    from vitdeploy.cli.output import print_json

    found = classify(artifact, list(images), top=top, options=SessionOptions(device=device))
    if as_json:
        print_json(found)
        return
    for prediction in found:
        best = ", ".join(f"{entry.name} {100 * entry.probability:.1f} %" for entry in prediction.classes)
        typer.echo(f"{prediction.image}: {best}")
