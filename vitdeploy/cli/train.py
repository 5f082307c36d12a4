"""``vitdeploy train``: from data to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitdeploy.cli.options import DATA_HELP, Json, ModelArguments, PreprocessName, complete_model

if TYPE_CHECKING:
    from vitdeploy.training.options import TrainOptions

PRECISIONS = {"float32": "32-true", "float16": "16-mixed", "bfloat16": "bf16-mixed"}


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
            show_default="what the weights say, else vit",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Weights to start from, for a model by name.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Fresh weights for timm:NAME, whose published ones it would take.")
    ] = False,
    arguments: ModelArguments = None,
    preprocess: PreprocessName = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="A training recipe: deit, swin, t2t … or a YAML file."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data.", show_default="140")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch-size", "-b", help="Images per update, over all devices.", show_default="64")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", "--learning-rate", help="After warm-up.", show_default="0.003")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of everything that is drawn.", show_default="0")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="SOURCE", help="Learn from this model too (distillation).")
    ] = None,
    teacher_arg: Annotated[
        list[str] | None,
        typer.Option("--teacher-arg", metavar="NAME=VALUE", help="Of the teacher, as in image_size=224; repeatable."),
    ] = None,
    accelerator: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option("--device", help="Where it runs; auto: whatever is there.", show_default="auto"),
    ] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", help="How many of them, or 'auto'.", show_default="1")
    ] = None,
    num_nodes: Annotated[int | None, typer.Option("--num-nodes", help="Machines.", show_default="1")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="As Lightning Fabric names it, as 'ddp'.", show_default="auto")
    ] = None,
    amp_dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option("--amp-dtype", help="Of the arithmetic; weights stay float32.", show_default="float32"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option, as augmentation.mixup=0.8; repeatable."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Names of the classes, in the folders' order.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an unfinished training.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model, or train one further; the weights that are best on the validation split are written."""
    from vitdeploy import train as fit
    from vitdeploy.cli.output import make_progress, print_artifact
    from vitdeploy.cli.values import parse_pairs
    from vitdeploy.errors import UsageError
    from vitdeploy.preprocess import preprocess_from
    from vitdeploy.training.recipe import TrainingRecipe, read_training_recipe

    base = TrainingRecipe() if recipe is None else read_training_recipe(recipe)
    named = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
        "distillation.teacher": teacher,
        "distillation.arguments": parse_pairs("--teacher-arg", teacher_arg) or None,
        "hardware.devices": int(devices) if devices is not None and devices.lstrip("-").isdigit() else devices,
        "hardware.num_nodes": num_nodes,
        "hardware.strategy": strategy,
        "hardware.accelerator": accelerator,
        "hardware.precision": None if amp_dtype is None else PRECISIONS[amp_dtype],
    }
    chosen = {name: value for name, value in named.items() if value is not None}
    others = parse_pairs("--set", settings)
    for name in sorted(set(chosen) & set(others)):
        raise UsageError(f"{name} is given twice, by its own option and by --set: give it once")
    options = merged(base.options, {**chosen, **others})
    named_preprocess = preprocess if preprocess is not None else base.preprocess
    own_weights = weights is not None or random_weights or model is not None
    checkpoint = fit(
        data,
        output,
        model=model if model is not None else base.model,
        weights=weights if own_weights else base.weights,
        random_weights=random_weights or (base.random_weights and not own_weights),
        arguments={**base.arguments, **parse_pairs("--model-arg", arguments)},
        options=options,
        preprocess=None if named_preprocess is None else preprocess_from(named_preprocess),
        labels=labels if labels is not None else base.labels,
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
