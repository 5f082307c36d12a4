"""``vitdeploy models``: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.options import Json, complete_model
from vitdeploy.cli.output import print_line
from vitdeploy.errors import ModelError


def models(
    glob: Annotated[
        str, typer.Argument(metavar="GLOB", help="Name or family, as in 'swin*'.", autocompletion=complete_model)
    ] = "*",
    as_json: Json = False,
) -> None:
    """List the models that can be named: family, input, parameters, GMACs, published top-1."""
    from vitdeploy import list_models
    from vitdeploy.cli.output import print_json, print_table

    found = list_models(glob)
    if not found:
        raise ModelError(f"no model matches {glob!r}: 'vitdeploy models' lists all of them")
    if as_json:
        print_json(found)
        return
    rows = [
        [
            entry.name,
            entry.family,
            "x".join(str(size) for size in (entry.preprocess.channels, *entry.preprocess.size)),
            f"{entry.parameters / 1e6:.1f}",
            f"{entry.gmacs:.2f}",
            f"{100 * entry.top1:.2f}" if entry.top1 is not None else "–",
            entry.source,
            _first_and_count(entry.aliases, 3),
            _first_and_count(entry.checkpoints, 1),
        ]
        for entry in found
    ]
    print_table(
        ["name", "family", "input", "params (M)", "GMACs", "top-1 (%)", "source", "also called", "checkpoints"], rows
    )
    print_line(f"{len(found)} models; any other of timm's is 'timm:NAME'")


def _first_and_count(texts: tuple[str, ...], shown: int) -> str:
    """Return the first texts and how many more there are; ``--json`` has them all."""
    if not texts:
        return "–"
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
