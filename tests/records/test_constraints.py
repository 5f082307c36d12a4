"""Options are checked by the constraints of their annotations, and refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import InstanceOf

from vitdeploy.errors import UsageError
from vitdeploy.records.constraints import Count, Finite, NonNegative, Positive, Share, check_fields


@dataclass(frozen=True)
class Settings:
    count: Count = 1
    share: Share = 0.5
    positive: Positive | None = None
    finite: Finite = 0.0
    sizes: tuple[Count, ...] = (1,)
    rest: NonNegative = 0.0
    free: int = -7
    other: InstanceOf[Path] | None = None


def test_what_the_annotations_admit_passes() -> None:
    check_fields(Settings(positive=1e-9, sizes=(1, 8), share=1, finite=-1.5))


def test_fields_without_a_range_are_left_to_whoever_opens_them() -> None:
    wrong: Any = 5
    check_fields(Settings(other=wrong))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(count=0), "set.count is 0, expected a whole number of at least 1"),
        (Settings(count=True), "set.count is True, expected a whole number of at least 1"),
        (Settings(share=1.5), "set.share is 1.5, expected 0 to 1"),
        (Settings(share=math.nan), "set.share is nan, expected 0 to 1"),
        (Settings(positive=0), "set.positive is 0, expected more than 0"),
        (Settings(finite=math.inf), "set.finite is inf, expected a finite number"),
        (Settings(sizes=(4, 0)), r"set.sizes is \(4, 0\), expected a whole number of at least 1"),
        (Settings(rest=math.nan), "set.rest is nan, expected at least 0"),
    ],
)
def test_what_they_do_not_admit_is_refused_by_name(settings: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        check_fields(settings, "set.")
