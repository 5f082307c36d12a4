"""Einsum becomes the MatMul that it stands for: the same numbers, and a linear or an attention that is quantized."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_vit import small_vit

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.clean import clean
from vitdeploy.graph.lower_einsum import LowerEinsum
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared

SIZES = {"a": 2, "b": 5, "c": 6, "d": 3, "e": 4, "f": 7}


def values(letters: str, seed: int) -> np.ndarray:
    shape = [SIZES[letter] for letter in letters]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(
    equation: str, constant: int | None, bias: np.ndarray | None = None
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Return a model of one Einsum, and what to feed it; ``constant`` is the operand that is a weight."""
    terms = equation.partition("->")[0]
    operands = terms.split(",")
    arrays = {f"x{index}": values(letters, index) for index, letters in enumerate(operands)}
    nodes = [helper.make_node("Einsum", list(arrays), ["e" if bias is not None else "y"], "q/ein", equation=equation)]
    weights = [numpy_helper.from_array(arrays.pop(f"x{constant}"), f"x{constant}")] if constant is not None else []
    if bias is not None:
        nodes.append(helper.make_node("Add", ["e", "bias"], ["y"], name="q/add"))
        weights.append(numpy_helper.from_array(bias, "bias"))
    # the first axis of what is fed is the batch
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *array.shape[1:]])
        for name, array in arrays.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", inputs, [output], weights)
    opsets = [helper.make_opsetid("", 20)]
    return ir.serde.deserialize_model(helper.make_model(made, opset_imports=opsets, ir_version=10)), arrays


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    with open_graph(model) as session:
        (found,) = session.run(feed).values()
    return found


@pytest.mark.parametrize(
    ("equation", "constant", "others"),
    [
        ("abc,cde->abde", 1, ["Reshape"]),  # q, k and v of Keras
        ("abcd,cde->abe", 1, ["Reshape"]),  # its output projection
        ("abcd,ecd->abe", 1, ["Reshape"]),
        ("abcd,dce->abe", 1, ["Reshape"]),
        ("abc,cd->abd", 1, []),
        ("ab,cb->ac", 1, []),
        ("acb,bd->acd", 1, []),
        ("cd,abc->abd", 0, []),
        ("abc,cd->adb", 1, ["Transpose"]),
        ("abcd,bdef->aecf", 1, ["Transpose", "Reshape", "Reshape", "Transpose"]),
        ("abd,cbd->abc", None, ["Transpose"] * 3),
        ("aecd,abcd->acbe", None, ["Transpose", "Transpose"]),  # scores of Keras
        ("acbe,aecd->abcd", None, ["Transpose", "Transpose"]),
        ("abcd,abed->abce", None, ["Transpose"]),  # scores by hand
        ("abce,abed->abcd", None, []),
    ],
)
def test_products_keep_their_values(equation: str, constant: int | None, others: list[str]) -> None:
    model, feed = graph(equation, constant)
    before = run(model, feed)
    LowerEinsum()(model)
    kinds = [node.op_type for node in model.graph]
    assert sorted(kinds) == sorted(["MatMul", *others])
    assert next(node.name for node in model.graph if node.op_type == "MatMul") == "q/ein"
    np.testing.assert_allclose(run(model, feed), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
def test_a_bias_stands_behind_the_product(leading: tuple[int, ...]) -> None:
    model, feed = graph("abc,cde->abde", 1, values("de", 9).reshape(*leading, SIZES["d"], SIZES["e"]))
    before = run(model, feed)
    LowerEinsum()(model)
    assert [(node.op_type, node.name) for node in model.graph][:2] == [("MatMul", "q/ein"), ("Add", "q/add")]
    np.testing.assert_allclose(run(model, feed), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (5, 3, 4)])
def test_what_is_added_over_other_axes_stays_behind(shape: tuple[int, ...]) -> None:
    model, feed = graph("abc,cde->abde", 1, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    before = run(model, feed)
    LowerEinsum()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Reshape", "Add"]
    np.testing.assert_allclose(run(model, feed), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "constant"),
    [
        ("...c,cd->...d", 1),
        ("abc,bcd->abd", 1),  # a weight for each token
        ("abc->acb", None),
        ("abc,abc,abc->a", None),
        ("abb,bd->ad", 1),
        ("abc,d->abcd", 1),  # no sum
        ("abc,cd->ad", 1),  # b is summed in one operand alone
        ("abc,c->ab", 1),
    ],
)
def test_other_sums_stay(equation: str, constant: int | None) -> None:
    terms = equation.partition("->")[0].replace("...", "ab").split(",")
    names = [f"x{index}" for index in range(len(terms))]
    node = helper.make_node("Einsum", names, ["y"], "ein", equation=equation)
    weights = [numpy_helper.from_array(values(terms[constant], 0), names[constant])] if constant is not None else []
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZES[letter] for letter in letters])
        for index, (name, letters) in enumerate(zip(names, terms, strict=True))
        if index != constant
    ]
    made = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)], weights)
    model = ir.serde.deserialize_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]))
    assert not LowerEinsum()(model).modified
    assert [one.op_type for one in model.graph] == ["Einsum"]


def test_an_attention_of_einsums_is_quantized_as_any_other() -> None:
    """The blocks of Keras: q, k and v by three Einsums, scores and mixing by two, the projection by one."""
    model = small_vit(depth=1)
    start = next(index for index, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    stop = [index for index, node in enumerate(model.graph.node) if node.op_type == "Add"][2]
    normed, stream = model.graph.node[start].input[0], model.graph.node[stop].output[0]
    random = np.random.default_rng(0)
    weights = {f"{name}.kernel": random.standard_normal((32, 2, 16)) * 0.2 for name in "qkv"}
    weights |= {f"{name}.bias": random.standard_normal((2, 16)) * 0.1 for name in "qkv"}
    weights |= {"o.kernel": random.standard_normal((2, 16, 32)) * 0.2, "o.bias": np.zeros(32), "scale": np.array(0.25)}
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"attn/{output}/{kind}", **attributes))
        return output

    for name in "qkv":
        node("Einsum", [normed, f"{name}.kernel"], f"{name}p", equation="abc,cde->abde")
        node("Add", [f"{name}p", f"{name}.bias"], name)
    node("Mul", ["q", "scale"], "qs")
    node("Einsum", ["k", "qs"], "scores", equation="aecd,abcd->acbe")
    node("Softmax", ["scores"], "p", axis=-1)
    node("Einsum", ["p", "v"], "mixed", equation="acbe,aecd->abcd")
    node("Einsum", ["mixed", "o.kernel"], "op", equation="abcd,cde->abe")
    node("Add", ["op", "o.bias"], stream)
    del model.graph.node[start : stop + 1]
    for one in reversed(nodes):
        model.graph.node.insert(start, one)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model)
    found = ir.serde.deserialize_model(model)
    feed = {"input": np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)}
    before = run(found, feed)
    found = clean(found)
    np.testing.assert_allclose(run(found, feed), before, rtol=1e-4, atol=1e-5)
    prepared = Prepared.of(found)
    plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "openvino", "mha"))
    int8 = {entry.group: len(entry.nodes) for entry in plan.entries if entry.precision == "int8"}
    assert len(prepared.attentions) == 1
    assert [len(group.linears) for group in prepared.linears if "attn" in group.name] == [3, 1]
    assert sum("attn" in name for name in int8) == 3
