"""Making ``Preprocess`` records from values of others, and the ones that have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vitdeploy.errors import DataError
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


def make_record(values: Mapping[str, Any], source: str) -> Preprocess:
    """Return a validated record.

    Raises:
        DataError: The values do not fit each other or their types; the line names the first.
    """
    try:
        return Preprocess.model_validate(dict(values))
    except ValidationError as error:
        raise DataError(f"{source!r} is not a valid Preprocess: {first_problem(error)}") from error
