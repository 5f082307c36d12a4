"""``diff`` tells where two artifacts part: planted faults are named by tensor, and what is sound is not accused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from present import present
from small_vit import small_vit, write_graph, write_small_vit

import vitdeploy as vd
from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.cli import main
from vitdeploy.cli.diff import SHOWN, summary_lines, table_lines, worst_tensors
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.quantization.request import QuantizeOptions

pytestmark = pytest.mark.slow

DATA = "digits:test"
OPTIONS = QuantizeOptions(samples=64, threads=1)
Edit = Callable[[ir.Model], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxModel]:
    """A small ViT, and the same in FP16 and INT8 as ``quantize`` makes them."""
    folder = tmp_path_factory.mktemp("sound")
    model = write_small_vit(folder / "vit.onnx")
    int8 = vd.quantize(
        model, precision="int8", target="onnxruntime", calibration="digits:train", options=OPTIONS, progress=None
    )
    return {"fp32": model, "fp16": vd.quantize(model, precision="fp16", progress=None), "int8": int8}


def edited(source: OnnxModel, path: Path, edit: Edit) -> OnnxModel:
    graph = source.load()
    edit(graph)
    return write_onnx(path, graph, source.manifest, source.golden)


def compared(first: OnnxModel, second: OnnxModel, **options: Any) -> vd.Diff:
    return vd.diff(first, second, data=DATA, threads=1, progress=None, **options)


def constant(graph: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    value = graph.graph.initializers[name]
    assert value.const_value is not None
    old = value.const_value.numpy()
    value.const_value = ir.tensor(change(old).astype(old.dtype), name=name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_sound_graph_parts_nowhere_and_every_tensor_has_a_counterpart(
    sound: dict[str, OnnxModel], precision: str
) -> None:
    found = compared(sound["fp32"], sound[precision])
    assert (found.parts_at, found.overflow, found.only_first, found.only_second) == (None, None, 0, 0)
    assert len(found.tensors) > 40
    assert found.images == 16
    if precision == "fp32":
        assert {one.verdict for one in (*found.tensors, found.outputs)} == {"equal"}
    else:
        assert found.outputs.sqnr_db is not None
        assert found.outputs.sqnr_db > 20
    order = [str(value.name) for node in sound[precision].load().graph for value in node.outputs]
    named = [one.tensor for one in found.tensors if one.tensor in order]
    assert named == sorted(named, key=order.index)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_wrong_scale_is_located(sound: dict[str, OnnxModel], tmp_path: Path, block: int, factor: float) -> None:
    def rescale(graph: ir.Model) -> None:
        pairs = [node for node in graph.graph if node.op_type == "QuantizeLinear"]
        node = [node for node in pairs if f"n{14 + 19 * block}" in str(node.name) or "Gelu" in str(node.name)][block]
        up = next(iter(node.outputs[0].consumers()))
        scale = up.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        wrong = ir.tensor(scale.const_value.numpy() * np.float32(factor), name="wrong")
        value = ir.Value(name="wrong", type=scale.type, shape=scale.shape, const_value=wrong)
        graph.graph.register_initializer(value)
        up.replace_input_with(1, value)
        planted.append(str(up.outputs[0].name))

    planted: list[str] = []
    wrong = edited(sound["int8"], tmp_path / "wrong.onnx", rescale)
    found = compared(sound["fp32"], wrong)
    assert found.parts_at == planted[0]
    assert found.losses[0].tensor == planted[0]
    assert any(f"they part at '{planted[0]}'" in line for line in summary_lines(found))


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight"])
def test_a_wrong_weight_is_located_at_its_linear(sound: dict[str, OnnxModel], tmp_path: Path, name: str) -> None:
    wrong = edited(sound["fp32"], tmp_path / "w.onnx", lambda graph: constant(graph, name, lambda old: old[::-1]))
    found = compared(sound["fp32"], wrong)
    reader = next(node for node in wrong.load().graph if name in [value.name for value in node.inputs if value])
    assert found.parts_at == reader.outputs[0].name
    assert found.tensor(present(found.parts_at)).node == reader.name


def test_an_overflow_of_fp16_is_named_with_its_node_and_value(tmp_path: Path) -> None:
    proto = small_vit()
    for tensor in proto.graph.initializer:
        if tensor.name in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 6e4, tensor.name))
        if tensor.name == "blocks.1.mlp.fc2.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 6e4, tensor.name))
    model = write_graph(tmp_path / "large.onnx", proto)
    naive = model.load()
    from vitdeploy.graph.fp16 import ConvertToFloat16

    ConvertToFloat16()(naive)
    manifest = model.manifest.model_copy(update={"precision": "fp16"})
    fp16 = write_onnx(tmp_path / "naive.onnx", naive, manifest, model.golden)
    found = compared(model, fp16)
    assert found.overflow is not None
    one = found.tensor(found.overflow)
    assert (one.op_type, found.parts_at) == ("MatMul", found.overflow)
    assert one.peak > 65504
    assert one.non_finite > 0
    assert any(one.node in line and f"{one.peak:.4g}" in line for line in summary_lines(found))


def test_tensors_of_other_names_are_found_by_structure(sound: dict[str, OnnxModel], tmp_path: Path) -> None:
    def rename(graph: ir.Model) -> None:
        taken = [value for node in graph.graph for value in node.outputs if not value.is_graph_output()]
        names = [str(value.name) for value in taken]
        for number, value in enumerate(taken):
            value.name = f"renamed_{number}"
        # names that lie: each stands for another tensor of the first graph
        for value, name in zip(taken, [*names[7:], *names[:7]], strict=True):
            value.name = name

    lying = edited(sound["fp32"], tmp_path / "renamed.onnx", rename)
    found = compared(sound["fp32"], lying)
    assert {one.verdict for one in found.tensors} == {"equal"}
    assert len(found.tensors) > 40
    assert all(one.tensor != one.counterpart for one in found.tensors[:20])


def test_a_sum_of_larger_values_does_not_hide_a_fault(sound: dict[str, OnnxModel], tmp_path: Path) -> None:
    """The residual stream may be so large that its SQNR stays above any limit: the branch is named all the same."""
    proto = small_vit()
    for tensor in proto.graph.initializer:
        if tensor.name == "position":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 300, tensor.name))
    model = write_graph(tmp_path / "large.onnx", proto)
    name = "blocks.0.attn.proj.weight"
    wrong = edited(model, tmp_path / "w.onnx", lambda graph: constant(graph, name, lambda old: -old))
    found = compared(model, wrong, limit_db=20)
    assert found.parts_at is not None
    assert found.tensor(present(found.parts_at)).op_type == "MatMul"
    assert found.tensors[[one.tensor for one in found.tensors].index(found.parts_at) - 1].verdict == "equal"


def test_scaled_channels_are_no_fault(sound: dict[str, OnnxModel], tmp_path: Path) -> None:
    factor = np.geomspace(0.1, 10, 32).astype(np.float32)

    def scale(graph: ir.Model) -> None:
        for name in ("blocks.0.mlp.norm.weight", "blocks.0.mlp.norm.bias"):
            constant(graph, name, lambda old: old * factor)
        constant(graph, "blocks.0.mlp.fc1.weight", lambda old: old / factor[:, None])

    found = compared(sound["fp32"], edited(sound["fp32"], tmp_path / "scaled.onnx", scale))
    assert found.parts_at is None
    assert [one.op_type for one in found.tensors if one.verdict == "rescaled"] == ["LayerNormalization"]


@pytest.mark.parametrize("runtimes", [("openvino",), ("onnxruntime", "openvino")])
def test_other_runtimes_give_outputs_only_and_it_is_said(
    sound: dict[str, OnnxModel], runtimes: tuple[str, ...]
) -> None:
    found = vd.diff(sound["fp32"], sound["fp32"], data=DATA, runtimes=runtimes, samples=4, threads=1, progress=None)
    assert found.tensors == ()
    assert "openvino" in found.notes[0]
    assert found.outputs.verdict in ("agrees", "equal")
    assert table_lines(found.tensors, 80) == []


def test_all_images_are_compared_whatever_the_batch(tmp_path: Path) -> None:
    fixed, free = write_small_vit(tmp_path / "fixed.onnx", batch=3), write_small_vit(tmp_path / "free.onnx")
    found = vd.diff(free, fixed, data=DATA, samples=7, threads=1, progress=None)
    assert found.images == 7
    assert found.parts_at is None
    again = vd.diff(free, fixed, data=DATA, samples=7, threads=1, progress=None)
    assert found == again


def test_memory_is_bounded_by_taking_tensors_in_parts(
    sound: dict[str, OnnxModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(sound["fp32"], sound["int8"])
    monkeypatch.setattr("vitdeploy.quantization.collector.MEMORY_BUDGET_BYTES", 16 << 10)
    parts = compared(sound["fp32"], sound["int8"])
    assert [one.tensor for one in parts.tensors] == [one.tensor for one in whole.tensors]
    for one, other in zip(parts.tensors, whole.tensors, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=0.5)


def test_models_that_take_other_images_are_refused(sound: dict[str, OnnxModel], tmp_path: Path) -> None:
    spec = sound["fp32"].manifest.preprocess
    assert spec is not None
    manifest = sound["fp32"].manifest.model_copy(update={"preprocess": spec.model_copy(update={"mean": (0.1,)})})
    other = write_onnx(tmp_path / "other.onnx", sound["fp32"].load(), manifest, None)
    with pytest.raises(ArtifactError, match="prepare images differently"):
        compared(sound["fp32"], other)
    with pytest.raises(UsageError, match="3 runtimes are named"):
        vd.diff(sound["fp32"], sound["fp32"], data=DATA, runtimes=("onnxruntime",) * 3, progress=None)
    with pytest.raises(UsageError, match="limit_db is nan"):
        compared(sound["fp32"], sound["int8"], limit_db=float("nan"))


def test_the_command_prints_lines_of_eighty_columns_and_its_record(
    sound: dict[str, OnnxModel], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["diff", str(sound["fp32"].path), str(sound["int8"].path), "--data", DATA, "--threads", "1"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "no tensor is below 10 dB" in text
    assert "same first class on" in text
    found = compared(sound["fp32"], sound["int8"])
    said, _, table = text.partition("\n\n")
    assert said.splitlines() == summary_lines(found)
    header, *shown, last = table.splitlines()
    assert header.startswith("tensor")
    assert last.startswith(f"{SHOWN} of {len(found.tensors)} tensors, in graph order")
    kept = [one.tensor for one in worst_tensors(found)]
    assert [line.split()[0] for line in shown] == kept
    assert {found.losses[0].tensor, found.tensors[-1].tensor} <= set(kept)
    assert kept == [one.tensor for one in found.tensors if one.tensor in kept]
    assert main([*command, "--all"]) == 0
    assert len(capsys.readouterr().out.partition("\n\n")[2].splitlines()) == len(found.tensors) + 1
    lines = table_lines(found.tensors, 80)
    assert len(lines) == len(found.tensors) + 2
    assert max(map(len, lines)) <= 80
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["tensors"]) == len(found.tensors)
    assert record["outputs"]["sqnr_db"] == found.outputs.sqnr_db


def test_an_unknown_operator_in_a_graph_is_the_runtimes_error(tmp_path: Path, sound: dict[str, OnnxModel]) -> None:
    proto = small_vit()
    next(node for node in proto.graph.node if node.op_type == "Gelu").domain = "nobody"
    proto.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    wrong = write_graph(tmp_path / "custom.onnx", proto, golden=False)
    with pytest.raises(vd.BackendError, match="nobody"):
        compared(sound["fp32"], wrong)
