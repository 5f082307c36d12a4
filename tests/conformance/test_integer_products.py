"""Every linear that a plan has in INT8 is multiplied in integers by its runtime: each family, at any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from small_families import FAMILIES

from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records import OperatorCensus, Target
from vitdeploy.stages.inspect import Runtime, inspect
from vitdeploy.stages.quantize import quantize

pytestmark = pytest.mark.slow

QUICK = QuantizeOptions(method="minmax", equalization="off", effort="fast", samples=24)


def with_batch(model: OnnxModel, batch: int, path: Path) -> OnnxModel:
    """Write a graph again with a fixed batch, as other exporters do."""
    graph = model.load()
    for value in graph.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([batch, *value.shape[1:]])
    for value in (*graph.graph.outputs, *(value for node in graph.graph for value in node.outputs)):
        value.shape = None
    ir.passes.common.ShapeInferencePass()(graph)
    return write_onnx(path, graph, model.manifest)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, small_export: Callable[[str], OnnxModel]) -> OnnxModel:
    return small_export(request.param)


# Convolutions and what OpenVINO multiplies of attention are planned where the batch is open, so that profile 'linear'
# is there at the other.
# A fixed batch is a matter of the graph more than of the runtime: each of both sizes goes through one of them.
@pytest.mark.parametrize(
    ("runtime", "batch"), [("onnxruntime", None), ("openvino", None), ("onnxruntime", 1), ("openvino", 8)]
)
def test_every_planned_linear_runs_in_integers(
    exported: OnnxModel, tmp_path: Path, runtime: Runtime, batch: int | None
) -> None:
    model = exported if batch is None else with_batch(exported, batch, tmp_path / "fixed.onnx")
    target: Target = runtime
    options = QUICK if batch else replace(QUICK, profile="full")
    int8 = quantize(
        model, tmp_path / "int8.onnx", precision="int8", target=target, calibration="digits:train", options=options
    )
    census = inspect(int8, runtime=runtime).census
    assert isinstance(census, OperatorCensus)
    assert int8.manifest.plan is not None
    planned = [node for entry in int8.manifest.plan.entries if entry.precision == "int8" for node in entry.nodes]
    assert census.floating == ()
    assert census.integer == census.planned == len(planned) > 0
