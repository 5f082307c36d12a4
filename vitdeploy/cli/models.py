"""``vitdeploy models``: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import Json, complete_model
from vitdeploy.cli.output import print_line
from vitdeploy.errors import ModelError

if TYPE_CHECKING:
    from vitdeploy.catalog import Variant

COLUMNS = ("name", "input", "params (M)", "GMACs", "top-1 (%)", "also called", "family", "source", "checkpoints")


def models(
    glob: Annotated[
        str,
        typer.Argument(
            metavar="GLOB", help="Name, other name or family, as in 'swin*'.", autocompletion=complete_model
        ),
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
    if len(found) == 1:
        _print_one(found[0])
        return
    rows = [
        [
            entry.name,
            "x".join(str(size) for size in (entry.preprocess.channels, *entry.preprocess.size)),
            f"{entry.parameters / 1e6:.1f}",
            f"{entry.gmacs:.2f}",
            f"{100 * entry.top1:.2f}" if entry.top1 is not None else "–",
            _first_and_count(entry.aliases, 3),
            entry.family,
            entry.source,
            _first_and_count(entry.checkpoints, 1),
        ]
        for entry in found
    ]
    omitted = print_table(COLUMNS, rows)
    print_line(f"{len(found)} models; any other of timm's is 'timm:NAME'")
    if omitted:
        print_line(f"too wide for this terminal: {', '.join(omitted)}; 'vitdeploy models NAME' shows them")


def _print_one(entry: Variant) -> None:
    """Print all that is known of a model, a line each."""
    size = entry.preprocess.size
    lines = {
        "family": entry.family,
        "input": f"{entry.preprocess.channels}x{size[0]}x{size[1]}",
        "parameters": f"{entry.parameters / 1e6:.1f} M",
        "GMACs": f"{entry.gmacs:.2f}",
        "top-1": f"{100 * entry.top1:.2f} % ({entry.source})" if entry.top1 is not None else f"– ({entry.source})",
        "also called": ", ".join(entry.aliases),
        "checkpoints": ", ".join(entry.checkpoints),
    }
    print_line(entry.name)
    for name, text in lines.items():
        print_line(f"  {name:<11}  {text or '–'}")


def _first_and_count(texts: tuple[str, ...], shown: int) -> str:
    """Return the first texts and how many more there are; ``--json`` has them all."""
    if not texts:
        return "–"
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
