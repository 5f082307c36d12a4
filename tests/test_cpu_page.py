"""The page of ``benchmarks/cpu.py`` is what its results say, and calls nobody faster whose interval holds 1."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("cpu_page")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_page_is_rendered_from_the_committed_results(page: ModuleType) -> None:
    results = page.read_results(page.CPU_RESULTS)
    assert results["rows"]
    assert page.CPU_PAGE.read_text("utf8") == page.cpu_page(results)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((1.01, 1.3), "ours is faster"),
        ((0.8, 0.99), "ours is slower"),
        ((0.99, 1.2), "no winner"),
        ((1.0, 1.2), "no winner"),
        (None, "not known, too few rounds"),
    ],
)
def test_nobody_is_called_faster_whose_interval_holds_1(
    page: ModuleType, interval: tuple[float, float] | None, words: str
) -> None:
    one: dict[str, Any] = {
        "p50_ms": 12.34,
        "sqnr_db": None,
        "against": "ours",
        "ours_faster_by": 1.1,
        "interval": interval,
        "share_of_gemm": 0.25,
    }
    cells = [cell.strip() for cell in page.line("a peer", one).split("|")]
    assert cells[1:4] == ["a peer", "12.3", "–"]
    assert cells[5:7] == [words, "25 %"]


def test_the_time_of_our_int8_is_divided_over_kernels_side_by_side(page: ModuleType) -> None:
    profiles = {"a runtime": {"MatMul int8": 0.75, "Gelu fp32": 0.25}, "another": {"Subgraph int8": 1.0}}
    (table,) = page.kernels(profiles)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    assert rows[2:] == [["MatMul int8", "75.0 %", "Subgraph int8", "100.0 %"], ["Gelu fp32", "25.0 %", "", ""]]
    assert {len(row) for row in rows} == {4}
    assert page.kernels({}) == []


def test_kernels_of_one_operator_stand_together_whatever_their_precision(page: ModuleType) -> None:
    first, second = {"MVN fp32": 2.0, "MatMul int8": 5.0, "Pad fp32": 0.001}, {"MVN int8": 1.0, "MatMul int8": 4.0}
    results = page.read_results(page.CPU_RESULTS)
    row = next(iter(results["kernels"].values())) | {
        "kernels_ms": {"ours": first, "theirs": second},
        "sqnr_db": {"ours": 33.0, "theirs": 21.4},
        "exact_sqnr_db": {"ours": 33.0, "theirs": 27.0},
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.beside_nncf("a ViT", row).splitlines()]
    assert rows[2:9] == [
        ["MatMul int8", "5.00", "4.00"],
        ["MVN fp32", "2.00", "–"],
        ["MVN int8", "–", "1.00"],
        ["all", "7.00", "5.00"],
        ["all but products", "2.00", "1.00"],
        ["SQNR as it ran", "33.0 dB", "21.4 dB"],
        ["SQNR without saturation", "33.0 dB", "27.0 dB"],
    ]
