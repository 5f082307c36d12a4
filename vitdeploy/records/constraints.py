"""Ranges that the annotations of an options class state, checked by pydantic when the options are made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from vitdeploy.errors import UsageError

Count = Annotated[int, Field(strict=True, ge=1)]
NonNegativeCount = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def check_fields(options: Any, prefix: str = "") -> None:
    """Refuse a value that the annotation of its field does not admit.

    Args:
        options: A dataclass whose annotations carry pydantic's constraints, such as ``Count`` or ``Share``.
        prefix: Goes before the names, such as ``augmentation.``.

    Raises:
        UsageError: One line with the field, its value and what is expected.
    """
    kind: Any = type(options)
    for name, adapter in _adapters(kind).items():
        value = getattr(options, name)
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            expected = _range_in_words(adapter.json_schema())
            raise UsageError(f"{prefix}{name} is {value!r}, expected {expected}") from error


@cache
def _adapters(kind: Any) -> Mapping[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: TypeAdapter(hint) for name, hint in hints.items() if _has_range(hint)}


def _has_range(hint: Any) -> bool:
    """Return whether an annotation, or a part of it, carries a ``Field``."""
    parts = get_args(hint)
    if get_origin(hint) is Annotated and any(isinstance(part, FieldInfo) for part in parts[1:]):
        return True
    return any(_has_range(part) for part in parts)


def _range_in_words(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema of one number, or of a list or an optional one of such, admits."""
    for branch in (*schema.get("anyOf", ()), *schema.get("prefixItems", ()), schema.get("items")):
        if isinstance(branch, Mapping) and branch.get("type") != "null":
            return _range_in_words(branch)
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        text = f"{low:g} to {high:g}"
    else:
        limits = {"at least": low, "more than": above, "at most": high, "less than": below}
        text = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None)
    if schema.get("type") == "integer":
        return f"a whole number of {text}"
    return text or "a finite number"
