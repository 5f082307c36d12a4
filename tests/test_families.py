"""Every family's recipe for the digits goes through every stage, and the pages of results are those of the JSON.

One epoch of one block each, so accuracy says nothing here; ``make families`` trains them whole and measures it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitdeploy.artifacts import Checkpoint
from vitdeploy.graph.legality import findings
from vitdeploy.pipeline import Recipe, read_recipe
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.sessions import BuildTarget

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "vitdeploy" / "recipes" / "families"
TARGET = BuildTarget(compute_capabilities=("8.9",))
FAMILIES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support_tables", ROOT / "benchmarks" / "support_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(recipe: Recipe, output: Path) -> Checkpoint:
    from vitdeploy.stages.train import train

    asked = recipe.train
    return train(recipe.data, output, model=asked.model, arguments=asked.arguments, options=asked.options)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    trained(read_recipe(RECIPES / "vit.yaml", {"train.options.epochs": 1}), path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_recipe_goes_from_training_to_an_int8_engine(family: str, teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is published for x86-64 alone")
    from vitdeploy.stages.build import build
    from vitdeploy.stages.export import export
    from vitdeploy.stages.quantize import quantize

    changes: dict[str, Any] = {"train.options.epochs": 1}
    if "depth" in read_recipe(RECIPES / f"{family}.yaml").train.arguments:
        changes["train.arguments.depth"] = 1
    if family == "deit":
        changes["train.options.distillation.teacher"] = str(teacher)
    checkpoint = trained(read_recipe(RECIPES / f"{family}.yaml", changes), tmp_path / "model.safetensors")
    model = export(checkpoint.path, tmp_path / "model.onnx")
    assert [check.status for check in model.manifest.checks] == ["passed"] * 3
    assert findings(model.load()) == []
    quick = QuantizeOptions(method="minmax", equalization="off", samples=64, effort="fast")
    int8 = quantize(model, tmp_path / "int8.onnx", precision="int8", calibration="digits:train", options=quick)
    sqnr = next(check for check in int8.manifest.checks if check.name == "logits SQNR")
    assert sqnr.status == "passed", sqnr
    engine = build(int8, tmp_path / "int8.engine", backend="tensorrt-rtx", target=TARGET)
    assert engine.manifest.precision == "int8"


def test_every_family_that_is_trained_has_a_recipe(tables: ModuleType) -> None:
    assert sorted(tables.TRAINED) == FAMILIES


def test_the_support_matrix_is_what_the_measured_results_render_to(tables: ModuleType) -> None:
    paths = tables.MATRIX_RESULTS, tables.FAMILY_RESULTS, tables.EXPORTER_RESULTS
    assert tables.SUPPORT_PAGE.read_text("utf8") == tables.support_page(*map(tables.read_results, paths))


def test_the_page_of_graph_sizes_is_what_the_counted_nodes_render_to(tables: ModuleType) -> None:
    assert tables.SIZE_PAGE.read_text("utf8") == tables.size_page(tables.read_results(tables.NODE_RESULTS))


def test_each_family_is_in_each_table(tables: ModuleType) -> None:
    families, matrix, nodes = (
        [row["family"] for row in tables.read_results(path)["rows"]]
        for path in (tables.FAMILY_RESULTS, tables.MATRIX_RESULTS, tables.NODE_RESULTS)
    )
    assert families == list(tables.TRAINED)
    assert matrix == nodes == list(tables.FAMILIES)


def test_graphs_of_other_exporters_are_quantized_as_the_native_ones(tables: ModuleType) -> None:
    rows = tables.read_results(tables.EXPORTER_RESULTS)["rows"]
    assert len(rows) == 8
    assert all(len(row["forms"]) == 9 for row in rows)
    assert [miss for row in rows for miss in tables.misses_of_exporters(row)] == []


def test_the_measured_families_are_as_expected(tables: ModuleType) -> None:
    rows = tables.read_results(tables.FAMILY_RESULTS)["rows"]
    assert {row["family"]: tables.misses_of_family(row) for row in rows} == {name: [] for name in tables.TRAINED}


def test_a_family_that_falls_short_is_named_in_the_page(tables: ModuleType) -> None:
    matrix, families = (tables.read_results(path) for path in (tables.MATRIX_RESULTS, tables.FAMILY_RESULTS))
    worse = json.loads(json.dumps(families))
    worse["rows"][0] |= {"top1": 0.9, "train_s": 400.0}
    worse["rows"][0]["rows"]["model.int8.onnx"]["delta_top1_pp"] = -1.5
    page = tables.support_page(matrix, worse, tables.read_results(tables.EXPORTER_RESULTS))
    assert "* ViT: top-1 is 0.9000, expected 0.95" in page
    assert "* ViT: training took 400 s, expected at most 300 s" in page
    assert "* ViT: INT8 for TensorRT changes top-1 by -1.50 pp, expected 1 at most" in page


def test_an_export_that_is_quantized_otherwise_is_named_in_the_page(tables: ModuleType) -> None:
    native = {"groups": 8, "sqnr_db": 33.0}
    forms = {
        "native": native,
        "a": native | {"groups": 7},
        "b": native | {"sqnr_db": 31.9},
        "c": {"error": "it broke"},
        "d": native | {"sqnr_db": 33.9},
    }
    row = {"model": "timm ViT", "forms": forms}
    expected = ["a: 7 groups in INT8, native 8", "b: 31.9 dB, native 33.0 dB", "c: it broke"]
    assert tables.misses_of_exporters(row) == expected
    results = tables.read_results(tables.EXPORTER_RESULTS)
    page = tables.other_exporters({"rows": [row | {"conditions": results["rows"][0]["conditions"]}]})
    assert all(f"* timm ViT, {miss}" in page for miss in expected)


def test_an_engine_that_was_built_and_not_executed_is_said_to_be_so(tables: ModuleType) -> None:
    matrix, families = (tables.read_results(path) for path in (tables.MATRIX_RESULTS, tables.FAMILY_RESULTS))
    for row in matrix["rows"]:
        for engine in row["engines"].values():
            engine["executed"] = False
    assert "**The engines were built, never executed**" in tables.support_page(
        matrix, families, tables.read_results(tables.EXPORTER_RESULTS)
    )


def test_a_forbidden_operator_is_a_miss(tables: ModuleType) -> None:
    row = {"after": {"nodes": 3, "operators": {"Expand": 2, "MatMul": 1}, "findings": []}}
    assert tables.misses_of_nodes(row) == ["2 × Expand"]
