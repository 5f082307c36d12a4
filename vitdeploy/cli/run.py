"""``vitdeploy run``: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.cli.options import DATA_HELP, Gpu, Json
from vitdeploy.cli.output import print_line


def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.yaml", help="What to do.", show_default="a ViT on handwritten digits"),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where everything is written.")
    ] = Path("vitdeploy-run"),
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Replace a value of the recipe, as train.options.epochs=20; repeatable."
        ),
    ] = None,
    gpu: Gpu = None,
    print_recipe: Annotated[
        bool, typer.Option("--print-recipe", help="Print the default recipe, every key with a comment, and exit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, export, quantize, build, bench and report; what has not changed since the last time is not done again."""
    from vitdeploy import read_recipe
    from vitdeploy.cli.bench import print_report
    from vitdeploy.cli.output import make_progress, print_json
    from vitdeploy.cli.values import choose_gpu, parse_pairs
    from vitdeploy.errors import RecipeError, UsageError
    from vitdeploy.pipeline.running import carry_out

    changes: dict[str, Any] = parse_pairs("--set", settings)
    if print_recipe:
        from vitdeploy.pipeline import default_text

        if recipe is not None or changes or data is not None or as_json:
            raise UsageError("--print-recipe prints the default and takes nothing else")
        typer.echo(default_text(), nl=False)
        return
    choose_gpu(gpu)
    if data is not None:
        if "data" in changes:
            raise UsageError("data is given twice, by --data and by --set: give it once")
        changes["data"] = data
    try:
        chosen = read_recipe(recipe, changes)
    except RecipeError as error:
        raise RecipeError(f"{error} ('vitdeploy run --print-recipe' shows every key)") from error
    result = carry_out(chosen, folder, make_progress())
    if as_json:
        print_json(result)
    else:
        print_report(result.report)
        if all(stage.status != "done" for stage in result.stages):
            print_line("everything was fresh: nothing was done")
        print_line(f"report: {result.page}")
    chosen.bench.hold(result.report)
