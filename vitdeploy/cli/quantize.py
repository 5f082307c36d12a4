"""``vitdeploy quantize``: a graph in another precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vitdeploy.quantization.search import StepName

from vitdeploy.cli.options import Effort, Equalization, Json, Method, Output, Profile, Samples, Seed, Target, Threads


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 graph.")],
    output: Output,
    precision: Annotated[
        Literal["fp16", "int8", "int8-weight-only", "fp8"] | None,
        typer.Option(
            "--precision", help="Precision of the graph; with --max-drop the lowest allowed, int8 by default."
        ),
    ] = None,
    target: Annotated[
        Target | None,
        typer.Option(
            "--target", help="The runtime that the graph is for; it decides the remainder.", show_default="tensorrt"
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA|TABLE",
            help="Images like those in use, or a CalibrationTable; int8 and fp8 need it.",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation", metavar="DATA", help="Images to judge on.", show_default="a part of the calibration set"
        ),
    ] = None,
    cpu: Annotated[
        Literal["any", "vnni", "amx", "auto"] | None,
        typer.Option(
            "--cpu",
            help="CPUs that INT8 is for: all; VNNI (finer weights); AMX (faster in OpenVINO); auto: this one, timed.",
            show_default="any",
        ),
    ] = None,
    remainder: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(
            "--remainder",
            help="What OpenVINO computes in beside 8 bits; bf16 on CPUs that have it.",
            show_default="fp32",
        ),
    ] = None,
    lower: Annotated[
        bool,
        typer.Option(
            "--lower", help="Write NAME.lowered.onnx too: faster, for ONNX Runtime and the CPU of this machine alone."
        ),
    ] = False,
    profile: Annotated[
        Profile,
        typer.Option(
            "--profile",
            help="mha: attention too; full: convolutions as well; auto: what keeps the logits and pays.",
        ),
    ] = "auto",
    method: Method = "auto",
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="For --method percentile.", show_default="99.99")
    ] = None,
    equalization: Equalization = "auto",
    rounding: Annotated[
        Literal["auto", "nearest", "gptq"],
        typer.Option("--rounding", help="Of weights: to the nearest integer, or so that outputs keep their values."),
    ] = "auto",
    steps: Annotated[
        str,
        typer.Option(
            "--steps",
            metavar="auto|none|NAMES",
            help="Try only ranges,scaling,shift,mul,streams,rotation,rounding,bias.",
        ),
    ] = "auto",
    effort: Annotated[
        Effort,
        typer.Option("--effort", help="fast trusts estimates, default tries steps on images, best all of them."),
    ] = "default",
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A precision plan that overrides the profile.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="Keep the observed ranges as a CalibrationTable.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    min_sqnr_db: Annotated[
        float | None, typer.Option("--min-sqnr", metavar="DB", help="Exit with 3, writing nothing, below this.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="PP",
            help="Find the fastest graph whose top-1 on --validation drops by no more.",
        ),
    ] = None,
    time_on: Annotated[
        str | None,
        typer.Option(
            "--time-on", metavar="BACKEND[:PROVIDER]", help="For --max-drop: onnxruntime, openvino, tensorrt …"
        ),
    ] = None,
    time_batch: Annotated[int, typer.Option("--time-batch", min=1, help="For --max-drop: images per call.")] = 1,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Convert an FP32 graph to FP16, INT8 or FP8, and judge it on images kept out of calibration."""
    from vitdeploy import QuantizeOptions
    from vitdeploy import quantize as convert
    from vitdeploy.cli.output import make_progress, print_artifact
    from vitdeploy.errors import BudgetError, UsageError
    from vitdeploy.quantization.budget_run import front_path
    from vitdeploy.report.budget import render_front

    if percentile is not None and method != "percentile":
        raise UsageError(f"--percentile {percentile:g} goes with --method percentile, and the method is {method!r}")
    if precision is None and max_drop is None:
        raise UsageError("--precision says what to make: fp16, int8, int8-weight-only or fp8 (--max-drop chooses)")
    precision = precision or "int8"
    if precision in ("fp16", "int8-weight-only") and table is not None:
        raise UsageError(f"--table keeps activation ranges, and precision {precision!r} has none: leave it out")
    options = QuantizeOptions(
        profile=profile,
        cpu=cpu,
        remainder=remainder,
        lower=lower,
        method=method,
        percentile=99.99 if percentile is None else percentile,
        equalization=parse_equalization(equalization),
        rounding=rounding,
        steps=parse_steps(steps),
        effort=effort,
        plan=plan,
        validation=validation,
        samples=samples,
        seed=seed,
        min_sqnr_db=min_sqnr_db,
        table=table,
        threads=threads,
        max_drop=max_drop,
        time_on=time_on,
        time_batch=time_batch,
    )
    try:
        quantized = convert(
            model,
            output,
            precision=precision,
            target=target,
            calibration=calibration,
            options=options,
            front_page=render_front,
            progress=make_progress(),
        )
    except BudgetError as error:
        show_front(error.front, quiet=as_json)
        raise
    if max_drop is not None:
        show_front(front_path(output), quiet=as_json)
    print_artifact(quantized, as_json)


def show_front(path: Path, *, quiet: bool) -> None:
    """Print what a search has tried, and where its page is."""
    from vitdeploy.cli.output import print_line, print_rich
    from vitdeploy.report import front_table, read_front

    if not quiet:
        print_rich(front_table(read_front(path)))
        print_line(f"wrote {path.with_suffix('.html')}")


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
