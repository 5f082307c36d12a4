"""A graph from another exporter gets the groups, the integers and the fidelity of the native export of its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from exporters import MODELS, adopt, export_foreign, images, native, operators, optimised

from vitdeploy.artifacts import OnnxModel
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import quantize

pytestmark = pytest.mark.slow

QUICK = QuantizeOptions(method="minmax", equalization="off", effort="fast")
WITHIN_DB = 1.0
FORMS = {
    "dynamo, opset 20": tuple(MODELS),
    "TorchScript, opset 13": ("timm DeiT", "transformers Swin", "torchvision ViT"),
    "TorchScript, opset 17, batch 8": ("timm Swin", "transformers ViT"),
}
"""The exporter of today for every model, the older ones for each package; ``make matrix`` measures all of them."""
FUSED = {13: ("timm Swin", "transformers DeiT"), 17: ("timm DeiT", "torchvision ViT")}
"""Models by the opset at which ONNX Runtime's optimizer sees them: LayerNorm is written out at 13, one node at 17.

Torchvision's Swin is left out: its symbolic shapes take the optimizer longer than those of all others together.
"""


@dataclass(frozen=True)
class Native:
    """What the native export of a model's weights gives."""

    int8: OnnxModel
    calibration: str


def cases(table: Mapping[Any, tuple[str, ...]]) -> list[tuple[str, Any]]:
    """Return each (model, exporter or opset)."""
    return [(name, key) for key, names in table.items() for name in names]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Native]:
    """Make the native export of a model, once however the tests are ordered."""

    @functools.cache
    def make(name: str) -> Native:
        folder = tmp_path_factory.mktemp("native")
        calibration = images(folder / "images")
        return Native(quantized(native(name, folder), folder, calibration), calibration)

    return make


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


@pytest.mark.parametrize(("name", "exporter"), cases(FORMS))
def test_a_foreign_graph_is_quantized_as_the_native_one(
    reference: Callable[[str], Native], name: str, exporter: str, tmp_path: Path
) -> None:
    own = reference(name)
    graph = adopt(export_foreign(name, exporter, tmp_path / "foreign.onnx"), tmp_path / "adopted.onnx")
    int8 = quantized(graph, tmp_path, own.calibration)
    assert groups(int8) == groups(own.int8)
    assert sqnr_db(int8) == pytest.approx(sqnr_db(own.int8), abs=WITHIN_DB)
    census = inspect(int8, runtime="onnxruntime").census
    assert census is not None
    assert census.floating == ()
    assert census.integer == census.planned >= groups(int8)


@pytest.mark.parametrize(("name", "opset"), cases(FUSED))
def test_what_onnxruntime_fuses_is_written_as_standard_operators(
    reference: Callable[[str], Native], name: str, opset: int, tmp_path: Path
) -> None:
    own = reference(name)
    exported = export_foreign(name, f"TorchScript, opset {opset}", tmp_path / "foreign.onnx")
    graph = adopt(optimised(exported, tmp_path / "optimised.onnx"), tmp_path / "adopted.onnx")
    assert not any("::" in name for name in operators(graph))
    int8 = quantized(graph, tmp_path, own.calibration)
    assert groups(int8) == groups(own.int8)
    assert sqnr_db(int8) == pytest.approx(sqnr_db(own.int8), abs=WITHIN_DB)
