"""``vitdeploy quantize``: a graph in another precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vitdeploy.quantization.search import StepName

from vitdeploy.cli.options import Json, Output, Samples, Seed, Target


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 graph.")],
    output: Output,
    precision: Annotated[
        Literal["fp16", "int8", "int8-weight-only", "fp8"], typer.Option("--precision", help="What to make.")
    ],
    target: Annotated[
        Target, typer.Option("--target", help="The runtime that the graph is for; it decides the remainder.")
    ] = "tensorrt",
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA|TABLE",
            help="Images like those of use, or a CalibrationTable; int8 and fp8 need it.",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="DATA", help="Judge on these, not on a part of the calibration set."),
    ] = None,
    profile: Annotated[Literal["linear", "mha"], typer.Option("--profile", help="Which nodes are quantized.")] = (
        "linear"
    ),
    method: Annotated[
        Literal["auto", "minmax", "percentile", "mse", "entropy"],
        typer.Option("--method", help="How clips follow from what was observed; auto compares."),
    ] = "auto",
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="For --method percentile; default 99.99.")
    ] = None,
    equalization: Annotated[
        str,
        typer.Option("--equalization", metavar="auto|off|ALPHA", help="Scale channels before linears; auto compares."),
    ] = "auto",
    steps: Annotated[
        str,
        typer.Option("--steps", metavar="auto|none|NAMES", help="Try only ranges,scaling,shift,mul,bias of these."),
    ] = "auto",
    effort: Annotated[
        Literal["fast", "default", "best"],
        typer.Option("--effort", help="fast trusts estimates, best tries every step on images."),
    ] = "default",
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A precision plan that goes before the profile.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="Keep what was observed as a CalibrationTable.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    min_sqnr_db: Annotated[
        float | None, typer.Option("--min-sqnr", metavar="DB", help="Exit with 3, writing nothing, below this.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: all.")] = 0,
    as_json: Json = False,
) -> None:
    """Convert an FP32 graph to FP16, INT8 or FP8, and judge it on images kept out of calibration."""
    from vitdeploy import QuantizeOptions
    from vitdeploy import quantize as convert
    from vitdeploy.cli.output import print_artifact
    from vitdeploy.errors import UsageError
    from vitdeploy.terminal_progress import make_progress

    if percentile is not None and method != "percentile":
        raise UsageError(f"--percentile {percentile:g} goes with --method percentile, and the method is {method!r}")
    if precision in ("fp16", "int8-weight-only") and table is not None:
        raise UsageError(f"--table keeps activation ranges, and precision {precision!r} has none: leave it out")
    options = QuantizeOptions(
        profile=profile,
        method=method,
        percentile=99.99 if percentile is None else percentile,
        equalization=parse_equalization(equalization),
        steps=parse_steps(steps),
        effort=effort,
        plan=plan,
        validation=validation,
        samples=samples,
        seed=seed,
        min_sqnr_db=min_sqnr_db,
        table=table,
        threads=threads,
    )
    quantized = convert(
        model,
        output,
        precision=precision,
        target=target,
        calibration=calibration,
        options=options,
        progress=make_progress(),
    )
    print_artifact(quantized, as_json)


def parse_steps(text: str) -> Literal["auto"] | tuple[StepName, ...]:
    """Return ``auto``, or the names of steps; ``none`` names none.

    Raises:
        UsageError: One is not known.
    """
    from vitdeploy.errors import UsageError
    from vitdeploy.quantization.search import STEPS

    if text == "auto":
        return "auto"
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STEPS:
            raise UsageError(f"--steps is {text!r}, expected 'auto', 'none' or some of {', '.join(STEPS)}")
    return tuple(step for step in STEPS if step in names)


def parse_equalization(text: str) -> Literal["auto", "off"] | float:
    """Return ``auto``, ``off`` or a number.

    Raises:
        UsageError: It is none of them.
    """
    from vitdeploy.errors import UsageError

    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--equalization is {text!r}, expected 'auto', 'off' or a number from 0 to 1") from error
