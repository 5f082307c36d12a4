"""``vitdeploy predict``: the classes of some images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import Device, Json
from vitdeploy.cli.output import print_line

if TYPE_CHECKING:
    from vitdeploy.runtime.prediction import Prediction

LISTED = 5
"""Numbers that are shown of a model that gives numbers."""


def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A checkpoint, an ONNX model or an engine.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes of each image.")] = 5,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print the most likely classes of each image with their probabilities, or what else the model gives."""
    from vitdeploy import SessionOptions
    from vitdeploy import predict as classify
    from vitdeploy.cli.output import print_json

    found = classify(artifact, list(images), top=top, options=SessionOptions(device=device))
    if as_json:
        print_json(found)
        return
    for prediction in found:
        print_line(f"{prediction.image}: {_said(prediction)}")


def _said(prediction: Prediction) -> str:
    if prediction.task not in ("regression", "features"):
        return ", ".join(f"{entry.name} {100 * entry.probability:.1f} %" for entry in prediction.classes)
    shown = ", ".join(f"{value:.4g}" for value in prediction.values[:LISTED])
    more = ", …" if len(prediction.values) > LISTED else ""
    what = "" if prediction.task == "regression" else f"{len(prediction.values)} features: "
    return f"{what}{shown}{more}"
