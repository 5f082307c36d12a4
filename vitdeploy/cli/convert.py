"""``vitdeploy convert``: foreign weights as a checkpoint of vitdeploy."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy.cli.options import (
    Json,
    Labels,
    ModelArguments,
    Output,
    PreprocessName,
    RandomWeights,
    ResetHead,
    Seed,
    TaskName,
    Weights,
)


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A weight file or folder, a catalogue name, hf:DIR.")],
    output: Output,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    arguments: ModelArguments = None,
    reset_head: ResetHead = False,
    preprocess: PreprocessName = None,
    labels: Labels = None,
    task: TaskName = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write weights of any dialect as a .safetensors checkpoint that carries its model and preprocessing."""
    from vitdeploy import SourceOptions
    from vitdeploy import convert as to_checkpoint
    from vitdeploy.cli.output import make_progress, print_artifact
    from vitdeploy.cli.values import parse_pairs
    from vitdeploy.errors import UsageError

    if output.suffix != ".safetensors":
        raise UsageError(f"the output {str(output)!r} is a checkpoint, expected a name that ends in .safetensors")
    options = SourceOptions(
        weights=weights,
        random_weights=random_weights,
        arguments=parse_pairs("--model-arg", arguments),
        reset_head=reset_head,
        seed=seed,
        labels=labels,
        preprocess=preprocess,
        task=task,
    )
    print_artifact(to_checkpoint(source, output, options=options, progress=make_progress()), as_json)
