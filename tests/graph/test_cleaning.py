"""Passes that make an exported graph small, readable and free of its origin."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.fold_transposes import FoldTransposes
from vitdeploy.graph.name_inputs_outputs import NameInputsOutputs
from vitdeploy.graph.name_nodes import KIND_KEY, SCOPES_KEY, NameNodes
from vitdeploy.graph.remove_no_ops import RemoveNoOps
from vitdeploy.graph.simplify import Simplify
from vitdeploy.graph.strip_metadata import StripMetadata

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "constant", "left"),
    [
        ("Add(x, c)", 0.0, 0),
        ("Add(c, x)", 0.0, 0),
        ("Sub(x, c)", 0.0, 0),
        ("Mul(c, x)", 1.0, 0),
        ("Div(x, c)", 1.0, 0),
        ("Sub(c, x)", 0.0, 1),
        ("Div(c, x)", 1.0, 1),
        ("Add(x, c)", 1e-8, 1),
        ("Add(x, c)", -1e-12, 1),
        ("Mul(x, c)", 1.000005, 1),
        ("Div(x, c)", 1 - 1e-6, 1),
    ],
)
def test_only_arithmetic_that_changes_nothing_is_removed(op: str, constant: float, left: int) -> None:
    model = parse(f"g (float[N, 4] x) => (float[N, 4] y) {{ a = {op} y = Neg(a) }}", c=np.float32(constant))
    expected = run(model, x=X)
    assert RemoveNoOps()(model).modified is (left == 0)
    assert len(ops(model)) == 1 + left
    np.testing.assert_array_equal(run(model, x=X)[0], expected[0])
    assert not RemoveNoOps()(model).modified


def test_a_neutral_constant_that_broadcasts_is_kept() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[1, N, 4] y) { a = Add(x, c) y = Neg(a) }", c=np.zeros((1, 1, 1), np.float32)
    )
    RemoveNoOps()(model)
    assert ops(model) == ["Add", "Neg"]


def test_a_zero_bias_is_kept_because_structure_must_not_depend_on_weights() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Add(x, c) y = Neg(a) }", c=np.zeros(4, np.float32))
    Simplify()(model)
    assert ops(model) == ["Add", "Neg"]


def test_simplify_keeps_the_epsilon_that_onnxscript_deletes() -> None:
    text = "g (float[N, 4] x, float[N, 4] d) => (float[N, 4] y) { e = Add(d, c) y = Div(x, e) }"
    model = parse(text, c=np.float32(1e-8))
    d = np.full((3, 4), 1e-9, np.float32)
    expected = run(model, x=X, d=d)[0]
    Simplify()(model)
    check(model)
    assert ops(model) == ["Add", "Div"]
    np.testing.assert_array_equal(run(model, x=X, d=d)[0], expected)

    from onnxscript.optimizer import optimize_ir

    theirs = parse(text, c=np.float32(1e-8))
    optimize_ir(theirs)
    assert ops(theirs) == ["Div"], "onnxscript has repaired its rule: Simplify may use it again"


def test_simplify_folds_shapes_and_drops_dead_nodes() -> None:
    model = parse(
        """g (float[N, 4] x) => (float[N, 2, 2] y) {
            n = Constant <value_ints = [-1]> ()  a = Constant <value_ints = [2]> ()  b = Constant <value_ints = [2]> ()
            s = Concat <axis = 0> (n, a, b)
            i = Identity(x)  dead = Neg(x)
            y = Reshape(i, s)
        }"""
    )
    expected = run(model, x=X)[0]
    Simplify()(model)
    check(model)
    assert ops(model) == ["Reshape"]
    np.testing.assert_array_equal(run(model, x=X)[0], expected)


def test_simplify_shares_shapes_but_never_parameters() -> None:
    model = parse(
        """g (float[N, 4] x) => (float[N, 2, 2] y) {
            a = Mul(x, g1) b = Mul(a, g2) c = Reshape(b, s1) d = Reshape(c, s3) y = Reshape(d, s2)
        }""",
        g1=np.full(4, 2, np.float32),
        g2=np.full(4, 2, np.float32),
        s1=np.array([-1, 2, 2]),
        s2=np.array([-1, 2, 2]),
        s3=np.array([-1, 4]),
    )
    expected = run(model, x=X)[0]
    Simplify()(model)
    assert {"g1", "g2"} <= set(model.graph.initializers)
    assert sum(name.startswith("s") for name in model.graph.initializers) <= 2
    np.testing.assert_array_equal(run(model, x=X)[0], expected)


def test_simplify_sorts_topologically() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Neg(a) a = Abs(x) }")
    Simplify()(model)
    assert ops(model) == ["Abs", "Neg"]
    check(model)


def test_a_linear_weight_is_transposed_in_place_and_keeps_its_name() -> None:
    weight = RNG.standard_normal((5, 4)).astype(np.float32)
    model = parse(
        "g (float[N, 4] x) => (float[N, 5] y) { t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t) }", w=weight
    )
    assert FoldTransposes()(model).modified
    check(model)
    assert ops(model) == ["MatMul"]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight.T)
    np.testing.assert_allclose(run(model, x=X)[0], X @ weight.T, rtol=1e-5, atol=1e-6)
    assert not FoldTransposes()(model).modified


def test_a_weight_that_is_also_read_as_it_is_stays() -> None:
    weight = RNG.standard_normal((4, 4)).astype(np.float32)
    text = (
        "g (float[N, 4] x) => (float[N, 4] y) { t = Transpose <perm = [1, 0]> (w) a = MatMul(x, t) y = MatMul(a, w) }"
    )
    model = parse(text, w=weight)
    FoldTransposes()(model)
    assert sorted(model.graph.initializers) == ["w", "w.transposed"]
    np.testing.assert_allclose(run(model, x=X)[0], X @ weight.T @ weight, rtol=1e-4, atol=1e-5)


def scoped(model: ir.Model, paths):
    """Give nodes the metadata that the dynamo exporter writes."""
    for node, path in zip(model.graph, paths, strict=True):
        if path is not None:
            node.metadata_props[SCOPES_KEY] = repr(["", *([path] if path else []), "fx_name"])
            node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/someone/model.py", line 3'
    return model


def test_nodes_are_named_after_their_modules() -> None:
    model = parse(
        "a = MatMul(input, w) b = Add(a, k) c = Relu(b) d = Add(c, k) logits = Add(d, input)",
        w=np.eye(4, dtype=np.float32),
        k=np.ones(4, np.float32),
    )
    scoped(model, ["blocks.0.fc", "blocks.0.fc", "blocks.0.act@1", "blocks.0.fc", ""])
    model.graph.initializers["w"].metadata_props[KIND_KEY] = "InputKind.PARAMETER"
    assert NameNodes()(model).modified
    assert [node.name for node in model.graph] == [
        "blocks.0.fc/MatMul",
        "blocks.0.fc/Add",
        "blocks.0.act/Relu",
        "blocks.0.fc/Add_1",
        "Add",
    ]
    assert [node.outputs[0].name for node in model.graph][:2] == ["blocks.0.fc/MatMul_out", "blocks.0.fc/Add_out"]
    assert sorted(model.graph.initializers) == ["blocks.0.fc/Add.constant", "w"]
    assert model.graph.outputs[0].name == "logits"
    check(model)
    assert not NameNodes()(model).modified


def test_a_node_without_a_module_takes_that_of_its_reader() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Split <num_outputs = 1, axis = 1> (a) y = Neg(b) }"
    )
    NameNodes()(scoped(model, ["stem", None, "blocks.0.attn"]))
    assert [node.name for node in model.graph] == ["stem/Relu", "blocks.0.attn/Split", "blocks.0.attn/Neg"]


def test_names_of_a_foreign_graph_stay_and_become_unique() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { [one] a = Relu(x) [one] b = Neg(a) y = Neg(b) }")
    NameNodes()(model)
    names = [node.name for node in model.graph]
    assert names[0] == "one"
    assert len(set(names)) == 3


def tensor_with_doc(name, array, text):
    proto = onnx.numpy_helper.from_array(array, name)
    proto.doc_string = text
    return ir.serde.deserialize_tensor(proto)


def test_nothing_of_the_machine_is_left_but_the_manifest() -> None:
    model = scoped(
        parse("g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Add(a, k) }", k=np.ones(4, np.float32)),
        ["m", "m"],
    )
    model.graph.initializers["k"].metadata_props["origin"] = "/home/someone"
    model.graph.inputs[0].metadata_props["origin"] = "/home/someone"
    model.graph[0].outputs[0].doc_string = "/home/someone"
    model.graph.initializers["k"].const_value = tensor_with_doc("k", np.ones(4, np.float32), "/home/someone")
    model.metadata_props.update({"vitdeploy": "{}", "other": "/home/someone"})
    model.graph.metadata_props["signature"] = "/home/someone"
    assert StripMetadata()(model).modified
    assert b"/home/someone" not in ir.to_proto(model).SerializeToString()
    assert dict(model.metadata_props) == {"vitdeploy": "{}"}
    assert not StripMetadata()(model).modified


def test_input_output_and_batch_get_their_names() -> None:
    text = "g (float[s77, 4] pixels) => (float[s77, 2, 2] out) { input = Relu(pixels) out = Reshape(input, s) }"
    model = parse(text, s=np.array([-1, 2, 2]))
    NameInputsOutputs()(model)
    check(model)
    assert (model.graph.inputs[0].name, model.graph.outputs[0].name) == ("input", "logits")
    assert str(model.graph.inputs[0].shape[0]) == str(model.graph.outputs[0].shape[0]) == "batch"
    assert run(model, input=X)[0].shape == (3, 2, 2)
    assert not NameInputsOutputs()(model).modified


def test_two_outputs_are_refused() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x) z = Neg(x) }")
    with pytest.raises(GraphError, match=r"outputs \['y', 'z'\], expected one image input and one logits output"):
        NameInputsOutputs()(model)
