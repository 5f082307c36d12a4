"""``vitdeploy verify``: whether an artifact is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json
from vitdeploy.cli.output import print_line


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file, a bundle or the folder of a run.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Also compare with PyTorch's logits, as export --reference kept."),
    ] = None,
    rebuild_engine: Annotated[
        bool | None,
        typer.Option(
            "--rebuild/--no-rebuild",
            help="Of a bundle none of whose engines runs here: build one from its ONNX model.",
            show_default="where there is a GPU",
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="KEY", help="The owner (Ed25519, PEM) who must have signed a bundle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check digests, graph, parents and golden samples, and what of a bundle runs here; 1 where a check fails."""
    from vitdeploy import verify as check
    from vitdeploy.cli.output import check_words, make_progress, print_json
    from vitdeploy.errors import ArtifactError

    found = check(artifact, data, rebuild_engine=rebuild_engine, public_key=public_key, progress=make_progress())
    if as_json:
        print_json(found)
    else:
        for entry in found.checks:
            print_line(f"{entry.name}: {check_words(entry)}")
    if not found.passed:
        failed = ", ".join(entry.name for entry in found.checks if entry.status == "failed")
        raise ArtifactError(f"{str(artifact)!r} failed: {failed}")
