"""``vitdeploy sensitivity``: where the error of a quantized graph comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitdeploy.cli.options import Effort, Equalization, Json, Method, Profile, Samples, Seed, Target, Threads
from vitdeploy.cli.output import print_line


def sensitivity(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 graph.")],
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="DATA|TABLE", help="Images like those in use, or a CalibrationTable."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Images to judge on.", show_default="a part of the calibration set"
        ),
    ] = None,
    precision: Annotated[
        Literal["int8", "int8-weight-only", "fp8"], typer.Option("--precision", help="What groups are quantized to.")
    ] = "int8",
    target: Annotated[Target, typer.Option("--target", help="The runtime that the graph is for.")] = "tensorrt",
    level: Annotated[
        Literal["groups", "kinds"], typer.Option("--level", help="kinds is quick: only all groups of a kind together.")
    ] = "groups",
    images: Annotated[int, typer.Option("--images", min=1, help="Judge on at most this many images.")] = 128,
    profile: Annotated[Profile, typer.Option("--profile", help="Which nodes the plan quantizes.")] = "auto",
    method: Method = "auto",
    equalization: Equalization = "auto",
    effort: Annotated[
        Effort,
        typer.Option("--effort", help="How the plan is found; fast trusts estimates."),
    ] = "default",
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Explain the error of this precision plan.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    threads: Threads = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="NAME.json", help="Write all numbers there, and NAME.html with plots."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize each group of a graph alone, and leave each out alone; nothing but the output is written."""
    from vitdeploy import QuantizeOptions, write_sensitivity
    from vitdeploy import sensitivity as analyse
    from vitdeploy.artifacts.outputs import refuse_unwritable
    from vitdeploy.cli.output import make_progress, print_json, print_rich
    from vitdeploy.cli.quantize import parse_equalization
    from vitdeploy.report import sensitivity_table
    from vitdeploy.report.sensitivity import json_path

    if output is not None:
        page = json_path(output).with_suffix(".html")
        refuse_unwritable(output, "a text file", inputs=(model, plan, calibration, data), beside=(page,))
    options = QuantizeOptions(
        profile=profile,
        method=method,
        equalization=parse_equalization(equalization),
        effort=effort,
        plan=plan,
        samples=samples,
        seed=seed,
        threads=threads,
    )
    found = analyse(
        model,
        calibration=calibration,
        data=data,
        precision=precision,
        target=target,
        level=level,
        images=images,
        options=options,
        progress=make_progress(),
    )
    written = None if output is None else write_sensitivity(found, output)
    if as_json:
        print_json(found)
        return
    print_rich(sensitivity_table(found))
    if output is not None:
        print_line(f"wrote {output} and {written}")
