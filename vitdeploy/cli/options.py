"""Options and arguments that several commands share.

The choices repeat those of the records, whose modules load pydantic; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8", "mixed"]
Target = Literal["tensorrt", "onnxruntime", "openvino"]
Split = Literal["train", "validation", "test"]


def complete_model(incomplete: str) -> list[str]:
    """Return the catalogue's names that begin so, for shell completion."""
    from vitdeploy.catalog import variants

    return [name for name in variants() if name.startswith(incomplete)]


DATA_HELP = "'digits', a folder of class folders, a calibration set, or 'timm:NAME'."

Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout, and nothing else.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
Samples = Annotated[
    int | None, typer.Option("--samples", min=1, help="Use so many images: a seeded, stratified subset.")
]
