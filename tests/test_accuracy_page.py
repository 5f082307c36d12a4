"""The page of ``benchmarks/quantization.py`` is what its results say, and names who wins."""

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
        return importlib.import_module("accuracy_page")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_page_is_rendered_from_the_committed_results(page: ModuleType) -> None:
    results = page.read_results(page.QUANTIZATION_RESULTS)
    assert results["models"]
    assert page.PAGE.read_text("utf8") == page.page(results)


def candidate(top1: float, sqnr: float, ratio: float | None = None, *interval: float) -> dict[str, Any]:
    costs = {"top1": top1, "sqnr_db": sqnr, "agreement": 1.0, "seconds": 1.0, "peak_mb": 10.0}
    return costs if ratio is None else costs | {"ours_faster_by": ratio, "interval": list(interval)}


@pytest.mark.parametrize(
    ("interval", "cell", "words"),
    [
        ((1.01, 1.3), "1.10", "No tool's graph is faster than ours."),
        ((0.95, 1.3), "–", "No tool's graph is faster than ours."),
        ((0.8, 0.99), "1.10", "Faster than ours: NNCF, transformer mode on vit (a)."),
    ],
)
def test_a_peer_that_wins_is_called_the_winner(
    page: ModuleType, interval: tuple[float, float], cell: str, words: str
) -> None:
    candidates = {
        "vitdeploy": candidate(0.9, 30.0),
        "nncf": candidate(0.95, 35.0, 1.1, *interval),
        "modelopt": {"error": "ValueError: no"},
    }
    models = {"digits.vit.a": {"fp32_top1": 0.96, "candidates": candidates}}
    accuracy = page.comparison(models, lambda row, _model: f"{row['sqnr_db']:.1f}", lambda row: row["sqnr_db"])
    assert "| vitdeploy | 30.0 |" in accuracy
    assert "| NNCF, transformer mode | **35.0** |" in accuracy
    assert "| NVIDIA ModelOpt | failed |" in accuracy
    assert f"| NNCF, transformer mode | {cell} |" in page.speeds(models)
    assert page.faster_than_ours(models) == words
    assert page.left_out(models) == "* NVIDIA ModelOpt: ValueError: no (vit (a))"
