"""A graph from another exporter gets the groups, the integers and the fidelity of the native export of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from exporters import MODELS, adopt, export_foreign, images, native, operators, optimised

from vitdeploy.artifacts import OnnxModel
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import quantize

QUICK = QuantizeOptions(method="minmax", equalization="off", effort="fast")
WITHIN_DB = 1.0
FORMS = ("dynamo, opset 20", "TorchScript, opset 13", "TorchScript, opset 17, batch 8")


@dataclass(frozen=True)
class Native:
    """What the native export of a model's weights gives."""

    name: str
    int8: OnnxModel
    calibration: str


@pytest.fixture(scope="module", params=MODELS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Native:
    folder = tmp_path_factory.mktemp("native")
    calibration = images(folder / "images")
    return Native(request.param, quantized(native(request.param, folder), folder, calibration), calibration)


def quantized(model: OnnxModel, folder: Path, calibration: str) -> OnnxModel:
    return quantize(
        model, folder / "int8.onnx", precision="int8", target="onnxruntime", calibration=calibration, options=QUICK
    )


def sqnr_db(model: OnnxModel) -> float:
    (value,) = [check.value for check in model.manifest.checks if check.name == "logits SQNR"]
    assert value is not None
    return value


def groups(model: OnnxModel) -> int:
    assert model.manifest.plan is not None
    return sum(entry.precision == "int8" for entry in model.manifest.plan.entries)


@pytest.mark.parametrize("exporter", FORMS)
def test_a_foreign_graph_is_quantized_as_the_native_one(reference: Native, exporter: str, tmp_path: Path) -> None:
    graph = adopt(export_foreign(reference.name, exporter, tmp_path / "foreign.onnx"), tmp_path / "adopted.onnx")
    int8 = quantized(graph, tmp_path, reference.calibration)
    assert groups(int8) == groups(reference.int8)
    assert sqnr_db(int8) == pytest.approx(sqnr_db(reference.int8), abs=WITHIN_DB)
    census = inspect(int8, runtime="onnxruntime").census
    assert census is not None
    assert census.floating == ()
    assert census.integer == census.planned >= groups(int8)


@pytest.mark.parametrize("opset", [13, 17])
def test_what_onnxruntime_fuses_is_written_as_standard_operators(reference: Native, opset: int, tmp_path: Path) -> None:
    exported = export_foreign(reference.name, f"TorchScript, opset {opset}", tmp_path / "foreign.onnx")
    graph = adopt(optimised(exported, tmp_path / "optimised.onnx"), tmp_path / "adopted.onnx")
    assert not any("::" in name for name in operators(graph))
    int8 = quantized(graph, tmp_path, reference.calibration)
    assert groups(int8) == groups(reference.int8)
    assert sqnr_db(int8) == pytest.approx(sqnr_db(reference.int8), abs=WITHIN_DB)
