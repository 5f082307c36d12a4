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
        Path | None,
        typer.Option("--output", "-o", metavar="NAME", help="The bundle: a folder to write, or an archive NAME.zip."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option("--triton", metavar="FOLDER", help="Write a model repository for Triton Inference Server."),
    ] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option("--storage-uri", metavar="URI", help="Where KServe finds that folder: writes its manifest too."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="A report of bench on these artifacts.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", metavar="TEXT", help="Licence of the weights.")] = "",
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="Origin of the weights, such as a URL.")] = "",
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign with this private key (Ed25519, PEM).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle: graphs, engines, labels, preprocessing, golden samples, report, digests of all, and a README.

    With --triton, a model repository in its place or beside it.
    """
    from vitdeploy import Provenance, TritonOptions, write_triton_repository
    from vitdeploy import package as bundle
    from vitdeploy.cli.output import print_json
    from vitdeploy.errors import UsageError
    from vitdeploy.text import size_text

    if output is None and triton is None:
        raise UsageError("there is nothing to write: pass --output NAME, --triton FOLDER or both")
    if storage_uri is not None and triton is None:
        raise UsageError("--storage-uri is where the folder of --triton lies: pass --triton too")
    sealed = None
    if output is not None:
        sealed = bundle(artifacts, output, report=report, provenance=Provenance(licence, source), sign=sign)
    if triton is not None:
        write_triton_repository(artifacts, triton, options=TritonOptions(storage_uri=storage_uri))
    if as_json:
        written = {} if sealed is None else {"path": str(sealed.path), "manifest": sealed.manifest}
        print_json({**written, **({} if triton is None else {"triton": str(triton)})})
        return
    if sealed is not None:
        for file in sealed.manifest.files:
            print_line(f"{file.name} ({size_text(file.bytes)})")
        if not licence:
            print_line("the licence of the weights is not stated: --licence TEXT states it")
        print_line(f"wrote {sealed.path} ({size_text(sum(file.bytes for file in sealed.manifest.files))})")
    if triton is not None:
        print_line(f"wrote {triton}, a model repository: tritonserver --model-repository={triton}")
