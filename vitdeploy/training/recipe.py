"""Training recipes: a model, its arguments and options as YAML. Those of papers come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from vitdeploy.errors import ArtifactError, RecipeError, UsageError
from vitdeploy.reading import parse_yaml, read_yaml
from vitdeploy.training.options import DEFAULTS, Distillation, TrainOptions, options_from

KEYS = ("about", "model", "weights", "random_weights", "arguments", "preprocess", "labels", "teacher", "options")


@dataclass(frozen=True)
class TrainingRecipe:
    """What ``train`` takes besides data and output; paths are relative to the folder that the command starts in."""

    model: str | None = None
    weights: Path | None = None
    random_weights: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocess: str | None = None
    labels: Path | None = None
    options: TrainOptions = DEFAULTS
    about: str = ""


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))
    )


def read_training_recipe(source: str | Path) -> TrainingRecipe:
    """Read a recipe: one of the package by its name, or a file.

    Raises:
        RecipeError: There is none, it is not YAML, or a key or value in it is wrong.
    """
    try:
        values = _values(source)
    except ValueError as error:
        raise RecipeError(f"{str(source)!r} is not YAML: {error}") from error
    if values is None:
        raise RecipeError(f"{str(source)!r} is empty, expected some of the keys {', '.join(KEYS)}")
    if not isinstance(values, dict):
        raise RecipeError(f"{str(source)!r} is no training recipe, expected the keys {', '.join(KEYS)}")
    unknown = [str(key) for key in values if key not in KEYS]
    if unknown:
        raise RecipeError(f"{str(source)!r} has the key {unknown[0]!r}, expected some of {', '.join(KEYS)}")
    for key in ("arguments", "options"):
        if not isinstance(values.get(key, {}), dict):
            raise RecipeError(f"{key} in {str(source)!r} is {values[key]!r}, expected names and values")
    texts = dict.fromkeys(("model", "weights", "preprocess", "labels", "teacher"), str)
    for key, kind in {**texts, "random_weights": bool}.items():
        if not isinstance(values.get(key), kind | None):
            raise RecipeError(f"{key} in {str(source)!r} is {values[key]!r}, expected {_KINDS[kind]}")
    try:
        options = with_teacher(options_from(values.get("options", {})), values.get("teacher"))
    except UsageError as error:
        raise RecipeError(f"{str(source)!r}: {error}") from error
    weights, labels = values.get("weights"), values.get("labels")
    return TrainingRecipe(
        model=values.get("model"),
        weights=None if weights is None else Path(weights),
        random_weights=bool(values.get("random_weights")),
        arguments=values.get("arguments", {}),
        preprocess=values.get("preprocess"),
        labels=None if labels is None else Path(labels),
        options=options,
        about=str(values.get("about", "")).strip(),
    )


_KINDS = {str: "a text", bool: "true or false"}


def with_teacher(options: TrainOptions, teacher: str | None) -> TrainOptions:
    """Return the options with a teacher; what else ``distillation`` says stays.

    Raises:
        UsageError: ``distillation`` names another teacher.
    """
    if teacher is None:
        return options
    distillation = options.distillation
    if distillation is None:
        return replace(options, distillation=Distillation(teacher))
    if str(distillation.teacher) != teacher:
        raise UsageError(
            f"teacher is {teacher!r}, and options.distillation.teacher is {str(distillation.teacher)!r}: leave one out"
        )
    return options


def _values(source: str | Path) -> Any:
    if str(source) in recipe_names():
        return parse_yaml(_folder().joinpath(f"{source}.yaml").read_text("utf8"))
    try:
        return read_yaml(source)
    except ArtifactError as error:
        raise RecipeError(
            f"there is no training recipe {str(source)!r}, expected a YAML file or one of {', '.join(recipe_names())} "
            f"({error})"
        ) from error


def _folder() -> Any:
    return resources.files("vitdeploy") / "recipes" / "training"
