"""Channels turn in constants alone; the function and the nodes stay, and the plan replays to the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from outliers import norm_outliers
from readout_vit import digits, run
from trained_models import FAMILIES, quantized, trained_model

from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.graph.attention_values import find_attention_values
from vitdeploy.graph.residual_streams import find_residual_streams
from vitdeploy.graph.rotation import rotation, rotation_that_keeps_means
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import observed_tensors
from vitdeploy.quantization.rotation import Bases
from vitdeploy.quantization.search import STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{family}.pinned" for family in FAMILIES)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return trained_model(request.param, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("width", [2, 16, 48, 64, 72, 192, 320])
def test_the_matrices_are_orthogonal_spread_and_the_same_each_time(width: int) -> None:
    for make in (rotation, rotation_that_keeps_means):
        matrix = make(width)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
        np.testing.assert_array_equal(matrix, make(width))
    np.testing.assert_allclose(rotation_that_keeps_means(width).sum(axis=1), 1, atol=1e-12)
    if width >= 16:
        assert np.abs(rotation_that_keeps_means(width)).max() < 0.75


def observed(prepared: Prepared, images: np.ndarray) -> dict[str, TensorObserver]:
    plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "onnxruntime"))
    found = {}
    for name, axis in observed_tensors(prepared, plan).items():
        found[name] = TensorObserver(name, axis)
        found[name].update(run(prepared.graph, images, name), np.arange(len(images), dtype=np.uint64))
    return found


def test_neither_function_nor_nodes_change(trained: OnnxModel) -> None:
    prepared = Prepared.of(trained.load())
    images = digits("validation")[0][:40]
    basis = Bases(prepared, observed(prepared, images), Format()).of(("stream", "values"))
    assert basis.rotated == ("stream", "values")
    assert [node.op_type for node in basis.prepared.graph.graph] == [node.op_type for node in prepared.graph.graph]
    before, after = run(prepared.graph, images), run(basis.prepared.graph, images)
    least = 1e-5 if "pinned" not in trained.path.name else 1e-4  # 1400 in a sum of ones leaves FP32 few digits
    assert np.abs(after - before).max() <= least * np.abs(before).max()
    for group in basis.prepared.linears:
        name = str(group.activation.name)
        if name in basis.turned:
            assert np.abs(run(basis.prepared.graph, images, name) - run(prepared.graph, images, name)).max() > 0.1


def test_what_was_observed_turns_with_the_graph(trained: OnnxModel) -> None:
    prepared = Prepared.of(trained.load())
    images = digits("validation")[0][:40]
    observers = observed(prepared, images)
    basis = Bases(prepared, observers, Format()).of(("stream", "values"))
    names = basis.turned.keys() & observers.keys()
    turned = [group for group in basis.prepared.linears if str(group.activation.name) in names]
    assert len(turned) == 6, "qkv, proj and fc1 of two blocks"
    for group in turned:
        activation = basis.activation(group)
        rows = run(basis.prepared.graph, images, str(group.activation.name)).reshape(-1, activation.lo.size)
        size = np.abs(rows).max()
        assert np.all(activation.lo >= rows.min(axis=0) - 1e-3 * size)
        assert np.all(activation.hi <= rows.max(axis=0) + 1e-3 * size)
        nearest = np.abs(rows[None] - activation.rows[:20, None]).max(axis=2).min(axis=1)
        assert nearest.max() < 1e-3 * size


def changed(model: ir.Model, op_type: str) -> ir.Model:
    """Put a node of ``op_type`` behind the first sum of the residual stream."""
    graph = model.graph
    total = next(node for node in graph if node.op_type == "LayerNormalization").inputs[0]
    assert total is not None
    node = ir.node(op_type, [total], name="between")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "between", total.type, total.shape
    readers = [(use.node, use.idx) for use in total.uses() if use.node is not node]
    producer = total.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])
    return model


@pytest.mark.parametrize("op_type", ["Relu", "Tanh", "Erf"])
def test_a_stream_that_something_else_reads_stays(op_type: str, tmp_path: Path) -> None:
    model = trained_model("vit", tmp_path)
    plain, broken = Prepared.of(model.load()), Prepared.of(changed(model.load(), op_type))
    widths = [stream.width for stream in find_residual_streams(plain.graph, plain.shapes)]
    assert widths == [plain.shapes[str(plain.linears[1].activation.name)][-1]]
    assert find_residual_streams(broken.graph, broken.shapes) == ()
    assert len(find_attention_values(broken.linears, broken.attentions, broken.shapes)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_outliers_behind_norms_are_spread_by_it_alone(family: str, tmp_path: Path) -> None:
    model = trained_model(family, tmp_path)
    model = write_onnx(tmp_path / "a.onnx", norm_outliers(model.load()), model.manifest, model.golden)
    first = quantized(
        model, tmp_path / "first.onnx", steps=("streams", "rotation"), rounding="nearest", method="minmax"
    )
    plan, calibration = first.manifest.plan, first.manifest.calibration
    assert plan is not None
    assert calibration is not None
    trials = {trial.step: trial for trial in calibration.trials}
    assert trials["rotation of residual streams"].sqnr_db > trials["minmax"].sqnr_db + 20
    assert "stream" in plan.rotated
    again = quantized(model, tmp_path / "again.onnx", plan=plan, method="minmax")
    assert again.digest == first.digest
    assert again.manifest.calibration is not None
    assert [trial.step for trial in again.manifest.calibration.trials] == ["minmax"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_tried_and_kept_only_where_it_gains(family: str, tmp_path: Path) -> None:
    int8 = quantized(trained_model(family, tmp_path), tmp_path / "int8.onnx", steps=STEPS)
    plan, calibration = int8.manifest.plan, int8.manifest.calibration
    assert plan is not None
    assert calibration is not None
    kept = {trial.step: trial.kept for trial in calibration.trials}
    assert ("stream" in plan.rotated) == kept["rotation of residual streams"]
    assert ("values" in plan.rotated) == kept["rotation of values"]
