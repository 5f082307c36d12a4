"""Making ``Preprocess`` records from values of others, and the ones that have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vitdeploy.errors import DataError, UsageError
from vitdeploy.reading import first_problem
from vitdeploy.records import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DIGITS_PREPROCESS = Preprocess(
    size=(8, 8),
    channels=1,
    resize="none",
    crop="none",
    interpolation="bilinear",
    mean=(0.30603,),
    std=(0.376196,),
    source="digits: mean and standard deviation of the training split",
)


def image_size(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of the ``image_size`` among a model's arguments, or of timm's ``img_size``; None for none.

    Raises:
        UsageError: It is neither a positive number of pixels nor two.
    """
    value = arguments.get("image_size", arguments.get("img_size"))
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    whole = isinstance(sides, list | tuple) and all(isinstance(side, int) and side > 0 for side in sides)
    if isinstance(value, bool) or not whole or len(sides) != 2:
        raise UsageError(f"image_size is {value!r}, expected a positive number of pixels or [height, width]")
    return sides[0], sides[1]


def make_record(values: Mapping[str, Any], source: str) -> Preprocess:
    """Return a validated record; a ``resize_size`` that is left out is that of the input.

    Raises:
        DataError: The values do not fit each other or their types; the line names the first.
    """
    size = values.get("size")
    if (
        isinstance(size, list | tuple)
        and len(set(size)) == 1
        and values.get("resize", "shortest") == "shortest"
        and values.get("resize_size") is None
    ):
        values = {**values, "resize_size": size[0]}
    try:
        # how bytes come in, and of which images, is a property of one graph, not of how images are made into its pixels
        return Preprocess.model_validate(
            {name: value for name, value in values.items() if name not in ("input", "frame")}
        )
    except ValidationError as error:
        raise DataError(f"{source!r} is not a valid Preprocess: {first_problem(error)}") from error
