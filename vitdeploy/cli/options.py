"""Options and arguments that several commands share.

The choices repeat those of the records, whose modules load pydantic; a test holds the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8", "mixed"]
Target = Literal["tensorrt", "onnxruntime", "openvino"]
Task = Literal["single-label", "multi-label", "binary", "regression", "features"]
DropBy = Literal["point", "interval"]
Split = Literal["train", "validation", "test"]
Profile = Literal["auto", "linear", "mha", "full"]
Effort = Literal["fast", "default", "best"]


def complete_model(incomplete: str) -> list[str]:
    """Return the catalogue's names that begin so, for shell completion."""
    from vitdeploy.catalog import variants

    names = [name for entry in variants().values() for name in (entry.name, *entry.aliases)]
    return [name for name in names if name.startswith(incomplete)]


DATA_HELP = "'digits', a folder of class folders, a calibration set, or 'timm:NAME'."

Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="A weight file of any dialect, for a model by name.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Fresh weights: to look at graph, size and speed only.")
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", "--argument", metavar="NAME=VALUE", help="Of the model, as in num_classes=10; repeatable."
    ),
]
ResetHead = Annotated[
    bool, typer.Option("--reset-head", help="Start the head anew where the number of classes differs.")
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Names of the classes: one per line, or JSON such as id2label."),
]
PreprocessName = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="timm:NAME|hf:DIR|FILE",
        help="How images become inputs, in place of what belongs to the weights; FILE is JSON or an artifact of ours.",
    ),
]
TaskName = Annotated[Task | None, typer.Option("--task", help="What the outputs mean, where the files do not say it.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where it runs; auto: whatever is there.")
]
MaxDropBy = Annotated[
    DropBy,
    typer.Option(
        "--max-drop-by", help="What --max-drop judges: the measured value, or the worse end of its 95 % interval."
    ),
]
Gpu = Annotated[
    int | None,
    typer.Option("--gpu", min=0, metavar="N", help="Which GPU, as nvidia-smi numbers them.", show_default="0"),
]
CpuFallback = Annotated[
    bool, typer.Option("--cpu-fallback", help="Let a GPU's provider leave nodes of a graph to the CPU.")
]
Method = Annotated[
    Literal["auto", "minmax", "percentile", "mse", "entropy"],
    typer.Option("--method", help="How ranges follow from the observed values; auto compares."),
]
Equalization = Annotated[
    str,
    typer.Option("--equalization", metavar="auto|off|ALPHA", help="Scale channels before linears; auto compares."),
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: all.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="USER@HOST",
        help="Do it on another machine over SSH, such as a Jetson.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout, and nothing else.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, help="Use this many images: a seeded, stratified subset.", show_default="all"),
]
