"""What ``quantize`` takes beside a graph: plans, profiles, tables of ranges, images to check on, older opsets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from notes import Notes
from quantized import DEPTH, FAST, ONE_THREAD, check, ops
from readout_vit import digits, run, write_readout_vit
from small_vit import small_vit, write_graph, write_small_vit

from vitdeploy.artifacts import OnnxModel, read_calibration_table, write_onnx
from vitdeploy.errors import ArtifactError, CalibrationError, GraphError, UsageError
from vitdeploy.graph.linear_groups import find_linear_groups
from vitdeploy.graph.lower_opset import LowerOpset
from vitdeploy.graph.quantize_before_moves import QuantizeBeforeMoves
from vitdeploy.quantization.plan import Profile
from vitdeploy.quantization.prepared import Prepared, prepare
from vitdeploy.records import PlanEntry, PrecisionPlan
from vitdeploy.stages.quantize import QuantizeOptions, QuantizeRequest, quantize

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", DEPTH)


def test_treatments_are_recorded_for_the_groups_that_take_them_and_replayed_from_the_plan(
    source: OnnxModel, tmp_path: Path
) -> None:
    options = QuantizeOptions(threads=1, samples=60, method="minmax", equalization=0.5, steps=("bias",))
    first = quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    treated = {entry.group.rpartition(".")[2]: entry.treatment for entry in first.manifest.plan.entries}
    assert [treated[name].scaling for name in ("qkv", "proj", "fc1", "fc2")] == [0.5, 0.5, 0.5, None]
    assert {name for name, treatment in treated.items() if treatment} == {"qkv", "proj", "fc1", "fc2"}
    replay = QuantizeOptions(threads=1, samples=60, plan=first.path)
    second = quantize(source, tmp_path / "b.onnx", precision="int8", calibration="digits", options=replay)
    assert second.digest == first.digest
    assert second.manifest.plan.entries == first.manifest.plan.entries


def test_profile_mha_rounds_the_factors_of_attention(source: OnnxModel, tmp_path: Path) -> None:
    options = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast", profile="mha")
    artifact = quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)
    counts = ops(artifact.load())
    assert counts["QuantizeLinear"] == (4 + 4) * DEPTH
    softmax = [node for node in artifact.load().graph if node.op_type == "QuantizeLinear" and _of_softmax(node)]
    assert [float(node.inputs[1].const_value.numpy()) for node in softmax] == pytest.approx([1 / 127] * DEPTH, rel=2e-3)
    assert check(artifact, "logits SQNR").value > 25


@pytest.mark.parametrize("profile", ["mha", "linear"])
def test_for_openvino_heads_are_merged_in_8_bits_where_attention_is_in_8_bits(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile
) -> None:
    options = QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", effort="fast", profile=profile
    )

    def made(name: str, options: QuantizeOptions) -> OnnxModel:
        path = tmp_path / name
        return quantize(source, path, precision="int8", target="openvino", calibration="digits", options=options)

    artifact = made("a.onnx", options)
    attentions = {str(found.context.outputs[0].name) for found in Prepared.of(source.load()).attentions}
    rounded = {str(node.inputs[0].name) for node in artifact.load().graph if node.op_type == "QuantizeLinear"}
    assert len(attentions & rounded) == (DEPTH if profile == "mha" else 0)
    groups = {tensor.group for tensor in artifact.manifest.error_profile.tensors}
    assert {f"blocks.{index}.attn.proj" for index in range(DEPTH)} < groups
    assert "" not in groups
    assert made("b.onnx", QuantizeOptions(threads=1, samples=60, plan=artifact.path)).digest == artifact.digest
    monkeypatch.setattr(QuantizeBeforeMoves, "call", lambda _, model: ir.passes.PassResult(model, modified=False))
    behind, (images, _) = made("c.onnx", options), digits("validation")
    np.testing.assert_array_equal(run(artifact.load(), images[:8]), run(behind.load(), images[:8]))


def _of_softmax(node) -> bool:
    return node.inputs[0].producer() is not None and node.inputs[0].producer().op_type == "Softmax"


def test_a_plan_takes_groups_out_and_brings_others_in(source: OnnxModel, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    entries = [
        {"group": "blocks.0.mlp.fc2", "precision": "fp16"},
        {"group": "blocks.1.attn.qkv", "precision": "fp32"},
        {"group": "readout", "precision": "int8"},
        {"group": "blocks.1.mlp.fc1", "precision": "int8-weight-only"},
    ]
    path.write_text(json.dumps({"profile": "hand", "remainder": "fp16", "entries": entries}))
    options = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast", plan=path)
    artifact = quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)
    model = artifact.load()
    assert ops(model)["QuantizeLinear"] == 4 * DEPTH - 2
    assert ops(model)["DequantizeLinear"] - ops(model)["QuantizeLinear"] == 4 * DEPTH - 1
    found = {entry.group: entry.precision for entry in artifact.manifest.plan.entries}
    assert {entry["group"]: entry["precision"] for entry in entries}.items() <= found.items()
    kept = next(node for node in model.graph if node.name == _node(source, "blocks.1.attn.qkv"))
    assert kept.inputs[1].const_value.dtype == ir.DataType.FLOAT


def _node(source: OnnxModel, group: str) -> str:
    (found,) = [each for each in find_linear_groups(prepare(source.load())) if each.name == group]
    return found.nodes[0]


def test_a_plan_with_an_unknown_group_writes_nothing(source: OnnxModel, tmp_path: Path) -> None:
    plan = PrecisionPlan(profile="x", remainder="fp16", entries=(PlanEntry(group="blocks.9.fc", precision="int8"),))
    with pytest.raises(GraphError, match=r"names the group 'blocks\.9\.fc', which is not in the graph"):
        quantize(
            source, tmp_path / "x.onnx", precision="int8", calibration="digits",
            options=QuantizeOptions(threads=1, plan=plan),
        )  # fmt: skip
    assert not (tmp_path / "x.onnx").exists()


def test_a_table_gives_the_graph_that_its_images_gave(source: OnnxModel, tmp_path: Path) -> None:
    table = tmp_path / "vit.calib.json"
    options = QuantizeOptions(threads=1, samples=200, table=table)
    first = quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    second = quantize(source, tmp_path / "b.onnx", precision="int8", calibration=table, options=ONE_THREAD)
    assert second.digest == first.digest
    stored = read_calibration_table(table)
    assert stored.manifest.calibration.samples == 160
    assert stored.manifest.parents["onnx"] == source.digest
    assert second.manifest.parents["calibration"] == stored.digest
    assert second.manifest.calibration.held_out == 0


def test_a_table_takes_its_place_after_its_graph(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.stages import quantize as stage

    def full(path: Path, *_: object) -> None:
        raise ArtifactError("the disk is full")

    monkeypatch.setattr(stage, "write_onnx", full)
    options = QuantizeOptions(threads=1, samples=60, table=tmp_path / "vit.calib.json", method="minmax", effort="fast")
    with pytest.raises(ArtifactError, match="the disk is full"):
        quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".safetensors", ".onnx")]


def test_a_table_of_another_graph_is_refused(source: OnnxModel, tmp_path: Path) -> None:
    table = tmp_path / "vit.calib.json"
    options = QuantizeOptions(threads=1, samples=60, table=table, method="minmax", equalization="off", effort="fast")
    quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    other = write_small_vit(tmp_path / "other.onnx")
    with pytest.raises(CalibrationError, match="made for another graph"):
        quantize(other, tmp_path / "b.onnx", precision="int8", calibration=table)
    assert not (tmp_path / "b.onnx").exists()


def test_a_table_has_no_images_so_the_golden_samples_are_compared(source: OnnxModel, tmp_path: Path) -> None:
    table = tmp_path / "vit.calib.json"
    options = QuantizeOptions(threads=1, samples=60, table=table, method="minmax", equalization="off", effort="fast")
    quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    artifact = quantize(source, tmp_path / "b.onnx", precision="int8", calibration=table)
    assert "4 golden samples" in check(artifact, "logits SQNR").detail


def test_validation_images_replace_the_held_out_ones(source: OnnxModel, tmp_path: Path) -> None:
    options = QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", effort="fast", validation="digits:validation"
    )
    artifact = quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)
    assert artifact.manifest.calibration.samples == 60
    assert artifact.manifest.calibration.held_out == 0
    assert "digits:validation" in check(artifact, "logits SQNR").detail
    assert set(artifact.manifest.parents) == {"onnx", "calibration", "validation"}


def test_without_images_and_golden_samples_the_check_says_that_it_was_not_made(tmp_path: Path) -> None:
    bare = write_graph(tmp_path / "bare.onnx", small_vit(), golden=False)
    artifact = quantize(bare, tmp_path / "x.onnx", precision="fp16")
    assert check(artifact, "logits SQNR").status == "unchecked"
    assert "no images" in check(artifact, "logits SQNR").detail


def test_an_older_opset_works_and_is_told_that_it_costs_casts(source: OnnxModel, tmp_path: Path) -> None:
    model = prepare(source.load())
    LowerOpset(17)(model)
    older = write_onnx(tmp_path / "older.onnx", model, source.manifest)
    notes = Notes()
    artifact = quantize(
        older, tmp_path / "x.onnx", precision="int8", calibration="digits", options=FAST, progress=notes
    )
    assert check(artifact, "logits SQNR").value > 20
    assert [line for line in notes.lines if line.startswith("the graph has opset 17, where scales are FP32")]
    with pytest.raises(GraphError, match="FP8 needs opset 19 or newer, the graph has 17"):
        quantize(older, tmp_path / "y.onnx", precision="fp8", calibration="digits", options=FAST)


def test_a_plan_that_rounds_activations_needs_images_whatever_the_precision(source: OnnxModel, tmp_path: Path) -> None:
    plan = PrecisionPlan(profile="x", remainder="fp16", entries=(PlanEntry(group="readout", precision="int8"),))
    options = QuantizeOptions(threads=1, plan=plan, samples=60, method="minmax", equalization="off", effort="fast")
    for precision in ("fp16", "int8-weight-only"):
        with pytest.raises(CalibrationError, match=f"precision '{precision}' with the plan given needs calibration"):
            quantize(source, tmp_path / "x.onnx", precision=precision, options=options)
    artifact = quantize(source, tmp_path / "x.onnx", precision="fp16", calibration="digits", options=options)
    assert ops(artifact.load())["QuantizeLinear"] == 1


def test_attention_has_no_weights_to_be_quantized_alone(source: OnnxModel, tmp_path: Path) -> None:
    group = next(entry.group for entry in _plan(source) if entry.group.endswith("attention"))
    plan = PrecisionPlan(profile="x", remainder="fp16", entries=(PlanEntry(group=group, precision="int8-weight-only"),))
    options = QuantizeOptions(threads=1, plan=plan, samples=60, method="minmax", equalization="off", effort="fast")
    with pytest.raises(UsageError, match="holds no weights"):
        quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)


def _plan(source: OnnxModel):
    request = QuantizeRequest.open(source, "plan.onnx", precision="int8", calibration="digits", options=FAST)
    return request.plan_of(Prepared.of(source.load())).entries
