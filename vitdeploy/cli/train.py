"""``vitdeploy train``: from data to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitdeploy.cli.options import DATA_HELP, Json, complete_model

if TYPE_CHECKING:
    from vitdeploy.training.options import TrainOptions


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.safetensors", help="The file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SOURCE",
            help="A catalogue name, a family, or a model to train further.",
            autocompletion=complete_model,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Weights to start from, for a model by name.")
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option("--argument", metavar="NAME=VALUE", help="Of the model, as in depth=6; repeatable."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="A training recipe: deit, swin, t2t … or a YAML file."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images per update, over all devices.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="After warm-up.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="SOURCE", help="Learn from this model too (distillation).")
    ] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="How many, or 'auto'.")] = None,
    num_nodes: Annotated[int | None, typer.Option("--num-nodes", help="Machines.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="As Lightning Fabric names it, as 'ddp'.")] = None,
    accelerator: Annotated[str | None, typer.Option("--accelerator", help="'auto', 'cpu', 'cuda' …")] = None,
    precision: Annotated[
        Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] | None,
        typer.Option("--precision", help="Of the arithmetic."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option, as augmentation.mixup=0.8; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where a training stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model, or train one further; the weights that are best on the validation split are written."""
    from vitdeploy import train as fit
    from vitdeploy.cli.output import print_artifact
    from vitdeploy.cli.values import parse_pairs
    from vitdeploy.errors import UsageError
    from vitdeploy.terminal_progress import make_progress
    from vitdeploy.training.recipe import TrainingRecipe, read_training_recipe

    base = TrainingRecipe() if recipe is None else read_training_recipe(recipe)
    named = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
        "distillation.teacher": teacher,
        "hardware.devices": int(devices) if devices is not None and devices.lstrip("-").isdigit() else devices,
        "hardware.num_nodes": num_nodes,
        "hardware.strategy": strategy,
        "hardware.accelerator": accelerator,
        "hardware.precision": precision,
    }
    given = {name: value for name, value in named.items() if value is not None}
    others = parse_pairs("--set", settings)
    for name in sorted(set(given) & set(others)):
        raise UsageError(f"{name} is given twice, by its own option and by --set: give it once")
    checkpoint = fit(
        data,
        output,
        model=model if model is not None else base.model,
        weights=weights,
        arguments={**base.arguments, **parse_pairs("--argument", argument)},
        options=merged(base.options, {**given, **others}),
        resume=resume,
        progress=make_progress(),
    )
    metrics = checkpoint.manifest.metrics
    print_artifact(checkpoint, as_json, [f"{name}: {value:.6g}" for name, value in metrics.items()])


def merged(options: TrainOptions, changes: Mapping[str, Any]) -> TrainOptions:
    """Return the options with some of them replaced; names of nested ones have dots.

    Raises:
        UsageError: An option does not exist, or its value is not allowed.
    """
    from vitdeploy.cli.values import put
    from vitdeploy.training.options import options_from

    values = asdict(options)
    for name, value in changes.items():
        put(values, name, value)
    return options_from(values)
