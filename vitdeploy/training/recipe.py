"""Training recipes: a model, its arguments and options as YAML. Those of papers come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vitdeploy.errors import ArtifactError, RecipeError, UsageError
from vitdeploy.reading import parse_yaml, read_yaml
from vitdeploy.training.options import DEFAULTS, TrainOptions, options_from

KEYS = ("about", "model", "arguments", "options")


@dataclass(frozen=True)
class TrainingRecipe:
    """What ``train`` takes besides data and output."""

    model: str = "vit"
    arguments: Mapping[str, Any] = field(default_factory=dict)
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
    try:
        options = options_from(values.get("options", {}))
    except UsageError as error:
        raise RecipeError(f"{str(source)!r}: {error}") from error
    return TrainingRecipe(
        str(values.get("model", "vit")), values.get("arguments", {}), options, str(values.get("about", "")).strip()
    )


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
