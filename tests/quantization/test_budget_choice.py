"""Which plans are tried, and which is chosen."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.quantization.budget_choice import choose, with_front
from vitdeploy.quantization.budget_plans import levels
from vitdeploy.records import FrontCandidate


def candidate(name: str, speed: float, sqnr: float, *, certified: bool = True, drop: float = 0.0) -> FrontCandidate:
    precision: Any = name if name in ("fp32", "fp16") else "int8"
    return FrontCandidate(
        name=name,
        precision=precision,
        speedup=speed,
        logits_sqnr_db=None if name == "fp32" else sqnr,
        certified=certified,
        finalist=certified,
        delta_top1_pp=-drop,
    )


BASE = candidate("fp32", 1.0, 0.0)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [0]), (2, [0, 1]), (8, [0, 1, 2, 3, 4, 6]), (48, [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32])],
)
def test_levels_are_fine_where_few_groups_suffice(count: int, expected: list[int]) -> None:
    assert levels(count) == expected


def test_the_fastest_that_is_certain_wins() -> None:
    fast, safe = candidate("int8", 2.0, 30, certified=False), candidate("int8, 3 in fp32", 1.6, 40)
    assert choose([BASE, candidate("fp16", 1.2, 70), safe, fast], 0.3) == (safe, True)


def test_of_candidates_that_are_equally_fast_the_one_with_less_error_wins() -> None:
    fast, safe = candidate("int8", 2.0, 30), candidate("int8, 1 in fp32", 1.99, 40)
    assert choose([BASE, safe, fast], 0.3) == (safe, True)


def test_where_nothing_is_faster_fp32_is_chosen() -> None:
    assert choose([BASE, candidate("fp16", 0.4, 70), candidate("int8", 0.9, 40)], 0.3) == (BASE, True)


def test_where_nothing_is_certain_the_best_is_only_found() -> None:
    lossy, likely = candidate("int8", 2.0, 20, certified=False, drop=1.0), candidate("a", 1.5, 30, certified=False)
    assert choose([BASE, likely, lossy], 0.3) == (likely, False)
    worse = candidate("b", 1.7, 25, certified=False, drop=0.9)
    assert choose([BASE, worse, lossy], 0.3) == (worse, False)


def test_the_front_holds_what_none_beats_in_both() -> None:
    slow = candidate("slow", 1.4, 35)
    found = with_front([BASE, candidate("safe", 1.5, 40), slow, candidate("fast", 2.0, 30)])
    assert {one.name for one in found if one.on_front} == {"fp32", "safe", "fast"}
