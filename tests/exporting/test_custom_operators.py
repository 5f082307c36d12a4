"""Operators of other domains: functions of the model, ONNX Runtime's own, a library's, and those that nobody knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from custom_operator import COMPILER, DOMAIN, compiled
from notes import Notes
from onnx import NodeProto, helper, numpy_helper
from small_vit import PREPROCESS, TOKENS, WIDTH, small_vit

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends.custom_operators import LIBRARIES
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.errors import BackendError, GraphError
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow

BETWEEN_BLOCKS = 5
"""Which Add ends the first block."""
INT8 = Intent("int8", "onnxruntime")


def with_nodes(
    nodes: Callable[[str, str], list[NodeProto]], *domains: str, weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """Return the small ViT with nodes that make ``new`` of ``old`` between its two blocks."""
    model = small_vit(depth=2)
    end = [node for node in model.graph.node if node.op_type == "Add"][BETWEEN_BLOCKS]
    old, new = end.output[0], "changed"
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    place = list(model.graph.node).index(end) + 1
    for node in reversed(nodes(old, new)):
        model.graph.node.insert(place, node)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    return model


def calling(*functions: onnx.FunctionProto, inputs: tuple[str, ...] = (), weights=None) -> onnx.ModelProto:
    """Return the small ViT with a call of the last of some functions between its blocks."""
    name = functions[-1].name
    model = with_nodes(
        lambda old, new: [helper.make_node(name, [old, *inputs], [new], name=name, domain=DOMAIN)],
        DOMAIN,
        weights=weights,
    )
    model.functions.extend(functions)
    return model


def function(name: str, nodes: list[NodeProto], *, opset: int = 20, inputs: tuple[str, ...] = ("x",)):
    opsets = [helper.make_opsetid(domain, 1) for domain in (DOMAIN, "com.microsoft")]
    return helper.make_function(DOMAIN, name, list(inputs), ["y"], nodes, [helper.make_opsetid("", opset), *opsets])


def adopted(model: onnx.ModelProto, folder: Path) -> tuple[OnnxModel, list[str]]:
    onnx.save(model, folder / "foreign.onnx")
    notes = Notes()
    found = export(
        folder / "foreign.onnx", folder / "ours.onnx", options=ExportOptions(preprocess=PREPROCESS), progress=notes
    )
    return found, notes.lines


def int8_groups(model: OnnxModel) -> set[str]:
    prepared = Prepared.of(model.load())
    plan = make_plan(prepared.linears, prepared.attentions, INT8)
    return {entry.group for entry in plan.entries if entry.precision == "int8"}


GROUPS = {f"blocks.{block}.{part}" for block in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
SWISH = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
TWICE = [helper.make_node("Swish", ["x"], ["t"], domain=DOMAIN), helper.make_node("Add", ["t", "x"], ["y"])]
LINEAR = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
QUICK = [helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")]
WEIGHTS = {
    "w": np.random.default_rng(3).standard_normal((WIDTH, WIDTH)).astype(np.float32),
    "b": np.zeros(WIDTH, np.float32),
}
SKIP = {"skip": np.ones((1, TOKENS, WIDTH), np.float32), "b": np.ones(WIDTH, np.float32)}


@pytest.mark.parametrize(
    ("model", "further"),
    [
        (calling(function("Swish", SWISH)), set()),
        (calling(function("Swish", SWISH), function("Twice", TWICE)), set()),
        (calling(function("Swish", SWISH, opset=18)), set()),
        (calling(function("Quick", QUICK)), set()),
        (calling(function("Lin", LINEAR, inputs=("x", "w", "b")), inputs=("w", "b"), weights=WEIGHTS), {"w"}),
    ],
    ids=["plain", "nested", "of another opset", "with a fused operator", "with a linear"],
)
def test_functions_of_the_model_become_its_nodes(model: onnx.ModelProto, further: set[str], tmp_path: Path) -> None:
    found, notes = adopted(model, tmp_path)
    graph = found.load()
    assert not graph.functions
    assert {node.domain for node in graph.graph} == {""}
    assert not [note for note in notes if note.startswith("graph:")]
    assert int8_groups(found) == GROUPS | further


def test_a_function_whose_operators_changed_before_the_graphs_opset_is_refused(tmp_path: Path) -> None:
    cast = [helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)]
    with pytest.raises(
        GraphError, match=r"function my\.layers::Old has Cast of opset 18, the graph is of opset 20: exp"
    ):
        adopted(calling(function("Old", cast, opset=18)), tmp_path)
    assert not (tmp_path / "ours.onnx").exists()


def contrib(operator: str, *inputs: str, weights=None, **attributes) -> onnx.ModelProto:
    """Return the small ViT with an operator of ONNX Runtime between its blocks."""

    def nodes(old: str, new: str) -> list[NodeProto]:
        return [helper.make_node(operator, [old, *inputs], [new], name="odd", domain="com.microsoft", **attributes)]

    return with_nodes(nodes, "com.microsoft", weights=weights)


def flattened(old: str, new: str) -> list[NodeProto]:
    return [
        helper.make_node("Reshape", [old, "flat"], ["rows"], name="rows"),
        helper.make_node("FusedGemm", ["rows", "w", "b"], ["fused"], "odd", None, "com.microsoft", activation="Relu"),
        helper.make_node("Reshape", ["fused", "tokens.again"], [new], name="again"),
    ]


FLAT = {"flat": np.array([-1, WIDTH]), "tokens.again": np.array([-1, TOKENS, WIDTH])}


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (contrib("Trilu", upper=0), "Trilu"),
        (contrib("SkipSimplifiedLayerNormalization", "skip", "b", weights=SKIP), "SkipSimplified"),
        (with_nodes(flattened, "com.microsoft", weights=WEIGHTS | FLAT), "FusedGemm"),
    ],
)
def test_operators_of_onnxruntime_stay_in_high_precision_which_is_said(
    model: onnx.ModelProto, operator: str, tmp_path: Path
) -> None:
    found, notes = adopted(model, tmp_path)
    assert any(
        note.startswith(f"graph: com.microsoft::{operator}") and "it stays in high precision" in note for note in notes
    )
    assert int8_groups(found) == GROUPS


def unknown(operator: str, domain: str) -> onnx.ModelProto:
    return with_nodes(
        lambda old, new: [helper.make_node(operator, [old], [new], name="blocks.0/odd", domain=domain)],
        *([domain] if domain else []),
    )


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (unknown("Mystery", DOMAIN), r"my\.layers::Mystery \(node 'blocks\.0/odd'\)"),
        (unknown("LayerNormalisation", ""), r"LayerNormalisation \(node 'blocks\.0/odd'\)"),
        (
            calling(function("Outer", [helper.make_node("Inner", ["x"], ["y"], name="in", domain="others")])),
            r"others::Inner \(node 'in'\)",
        ),
    ],
    ids=["of another domain", "misspelt", "within a function"],
)
def test_what_nobody_knows_is_refused_by_operator_domain_and_node(
    model: onnx.ModelProto, named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GraphError, match=rf"does not know: {named}: if a library registers them, .* {LIBRARIES}, else"):
        adopted(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler to make a library of operators with")
def test_operators_of_a_library_run_in_high_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled(tmp_path)
    monkeypatch.setenv(LIBRARIES, os.pathsep.join([str(library), ""]))
    found, notes = adopted(unknown("Halve", DOMAIN), tmp_path)
    assert any("my.layers::Halve is no operator of ONNX: it stays in high precision" in note for note in notes)
    assert int8_groups(found) == GROUPS
    options = QuantizeOptions(threads=1, effort="fast", samples=40)
    int8 = quantize(
        found, tmp_path / "i.onnx", precision="int8", target="onnxruntime", calibration="digits:train", options=options
    )
    (halve,) = [node for node in int8.load().graph if node.domain == DOMAIN]
    assert halve.inputs[0].producer().op_type == "Add"
    assert int8.manifest.checks[0].status == "passed"
    monkeypatch.delenv(LIBRARIES)
    with pytest.raises(
        BackendError, match=rf"Halve.* is not a registered function/op: {LIBRARIES} names the libraries"
    ):
        open_graph(int8.load())


@pytest.mark.parametrize("content", [None, b"", b"not a library"], ids=["missing", "empty", "text"])
def test_a_library_that_cannot_be_loaded_is_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libodd.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setenv(LIBRARIES, str(library))
    with pytest.raises(GraphError, match=rf"{LIBRARIES} names '.*libodd\.so', which"):
        adopted(small_vit(depth=1), tmp_path)
