"""``vitdeploy package``: from graphs and engines to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json
from vitdeploy.cli.output import print_line


def package(
    artifacts: Annotated[
        list[Path],
        typer.Argument(metavar="ARTIFACT...", help="ONNX models and engines of one model, the preferred ones first."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NAME", help="The folder to write, or an archive: NAME.zip.")
    ],
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="A report of bench on these artifacts.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", metavar="TEXT", help="On what terms the weights are.")] = "",
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="Where the weights come from.")] = "",
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign with this private key (Ed25519, PEM).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle: graphs, engines, labels, preprocessing, golden samples, report, digests of all, and a README."""
    from vitdeploy import Provenance
    from vitdeploy import package as bundle
    from vitdeploy.cli.output import print_json
    from vitdeploy.text import size_text

    made = bundle(artifacts, output, report=report, provenance=Provenance(licence, source), sign=sign)
    if as_json:
        print_json({"path": str(made.path), "manifest": made.manifest})
        return
    for file in made.manifest.files:
        print_line(f"{file.name} ({size_text(file.bytes)})")
    if not licence:
        print_line("the licence of the weights is not stated: --licence TEXT states it")
    print_line(f"wrote {made.path} ({size_text(sum(file.bytes for file in made.manifest.files))})")
