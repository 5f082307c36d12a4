"""A factor or shift per channel moves upstream without changing an output, and is refused wherever it would."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from present import present

from vitdeploy.graph.channel_changes import absorb, insert_scaling, scale_rows
from vitdeploy.graph.channel_places import bias_places, channel_axis, find_places
from vitdeploy.graph.linear_groups import find_linear_groups, shapes_at_batch
from vitdeploy.quantization.prepared import prepare

RNG = np.random.default_rng(0)
NORM = "n = LayerNormalization (x, gamma, beta)"
DECOMPOSED = """mean = ReduceMean <keepdims = 1> (x, last) d = Sub (x, mean) sq = Mul (d, d)
    var = ReduceMean <keepdims = 1> (sq, last) root = Sqrt (var) unit = Div (d, root)
    g = Mul (unit, gamma) n = Add (g, beta)"""
ATTENTION = """p0 = MatMul (x, wqk) p = Softmax <axis = -1> (p0)"""
QKV = """packed0 = MatMul (x, wqkv) packed = Add (packed0, bqkv) five = Reshape (packed, to_heads)
    lead = Transpose <perm = [2, 0, 3, 1, 4]> (five) q = Gather <axis = 0> (lead, i0) k = Gather <axis = 0> (lead, i1)
    v = Gather <axis = 0> (lead, i2) kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt)
    p = Softmax <axis = -1> (s) o = MatMul (p, v) ot = Transpose <perm = [0, 2, 1, 3]> (o) n = Reshape (ot, joined)"""
SPLIT = """packed0 = MatMul (x, wqkv) packed = Add (packed0, bqkv)
    q, k, v0 = Split <axis = -1, num_outputs = 3> (packed)
    q4 = Reshape (q, heads) k4 = Reshape (k, heads) v4 = Reshape (v0, heads) qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4) v = Transpose <perm = [0, 2, 1, 3]> (v4) s = MatMul (qt, kt)
    p = Softmax <axis = -1> (s) o = MatMul (p, v) ot = Transpose <perm = [0, 2, 1, 3]> (o) n = Reshape (ot, joined)"""
SLICED = SPLIT.replace(
    "q, k, v0 = Split <axis = -1, num_outputs = 3> (packed)",
    """q = Slice (packed, zero, c32, last) k = Slice (packed, c32, c64, last) v0 = Slice (packed, c64, many, minus)""",
)
ERF = "a = Div (x, two) b = Erf (a) c1 = Add (b, onef) half0 = Mul (x, half) n = Mul (half0, c1)"
ERF_LAST = "a = Div (x, two) b = Erf (a) c1 = Add (b, onef) m0 = Mul (x, c1) n = Mul (m0, half)"
HEAD = "h = MatMul (n, w)"


def normal(*shape, spread: float = 1.0):
    return (RNG.standard_normal(shape) * np.geomspace(1 / spread, spread, shape[-1])).astype(np.float32)


def graph(body, norm=NORM, **constants: Any):
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, 3, 8, 8] input) => (float[batch, 20] logits) {{
        c = Conv <strides = [2, 2]> (input, patch) r = Reshape (c, to_tokens) x = Transpose <perm = [0, 2, 1]> (r)
        {norm} {body}
        pooled = ReduceMean <keepdims = 0> (h, tokens) logits = Gemm (pooled, head)
    }}"""
    values = {
        "patch": normal(32, 3, 2, 2), "to_tokens": np.array([0, 32, 16]), "gamma": normal(32, spread=8),
        "beta": normal(32), "w": normal(32, 48), "wk": normal(32, 48), "wt": normal(48, 32), "bias": normal(48),
        "rows": np.array([-1, 32]), "back": np.array([-1, 16, 48]), "tokens": np.array([1]), "last": np.array([2]),
        "head": normal(48, 20), "map": np.array([0, 4, 4, 32]), "windows": np.array([-1, 2, 2, 2, 2, 32]),
        "zero": np.array([0]), "one": np.array([1]), "many": np.array([99]), "minus": np.array([-1]),
        "c32": np.array([32]), "c64": np.array([64]), "wqk": normal(32, 16), "wqkv": normal(32, 96) * 0.2,
        "bqkv": normal(96), "to_heads": np.array([0, 16, 3, 4, 8]), "heads": np.array([0, 16, 4, 8]),
        "joined": np.array([0, 16, 32]), "i0": np.array(0), "i1": np.array(1), "i2": np.array(2),
        "w1": normal(32, 32), "b1": normal(32), "wt1": normal(32, 32), "k1": normal(32, 32, 1, 1),
        "kw": normal(48, 32, 1, 1), "half": np.float32(0.5), "two": np.float32(1.4), "onef": np.float32(1),
        "scale": normal(32), "average": normal(32), "variance": np.abs(normal(32)), "grid": np.array([0, 32, 4, 4]),
        "flat": np.array([0, 48, 16]), "w128": normal(128, 48), "g128": normal(128), "b128": normal(128),
        "token": normal(1, 1, 32), **constants,
    }  # fmt: skip
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.inputs:
            if value.name in values and value.name not in model.graph.initializers:
                value.const_value = ir.tensor(np.asarray(values[value.name]), name=value.name)
                model.graph.register_initializer(present(value))
    return prepare(model)


def run(model: ir.Model, batch):
    image = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": image})[0]


def target(model: ir.Model):
    """The group in front of ``h``: the last but the head."""
    return [group for group in find_linear_groups(model) if group.linears[0].node.outputs[0].name != "logits"][-1]


def places_of(model: ir.Model, kind: Literal["scale", "shift"] = "scale"):
    group = target(model)
    return group, find_places(group, shapes_at_batch(model, 2), kind)


MERGE = """a = Reshape (x, map) a0 = Slice (a, zero, many, axis1, two_steps) a1 = Slice (a, one, many, axis1, two_steps)
    e0 = Slice (a0, zero, many, axis2, two_steps) e1 = Slice (a1, zero, many, axis2, two_steps)
    e2 = Slice (a0, one, many, axis2, two_steps) e3 = Slice (a1, one, many, axis2, two_steps)
    j = Concat <axis = -1> (e0, e1, e2, e3) n = LayerNormalization (j, g128, b128)"""
STEPS = {"axis1": np.array([1]), "axis2": np.array([2]), "two_steps": np.array([2])}
MERGE_HEAD = "m = MatMul (n, w128) h = Reshape (m, merged)"

SCALED = {
    "MatMul": (HEAD, NORM),
    "separate linears": ("q = MatMul (n, w) k = MatMul (n, wk) h = Add (q, k)", NORM),
    "Gemm behind a Reshape": ("a = Reshape (n, rows) m = Gemm <transB = 1> (a, wt) h = Reshape (m, back)", NORM),
    "windows": (
        """a = Reshape (n, windows) t = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a) r2 = Reshape (t, rows)
        m = MatMul (r2, w) h = Reshape (m, back)""",
        NORM,
    ),
    "rolled windows": (
        """a = Reshape (n, map) a1 = Slice (a, one, many, tokens) a0 = Slice (a, zero, one, tokens)
        roll = Concat <axis = 1> (a1, a0) r2 = Reshape (roll, rows) m = MatMul (r2, w) h = Reshape (m, back)""",
        NORM,
    ),
    "no beta": (HEAD, "n = LayerNormalization (x, gamma)"),
    "decomposed norm": (HEAD, DECOMPOSED),
    "Mul by a vector after GELU": (HEAD, "u = Gelu (x) n = Mul (u, gamma)"),
    "Mul by a number after GELU": (HEAD, "u = Gelu (x) n = Mul (half, u)"),
    "Div by a vector": (HEAD, "u = Gelu (x) n = Div (u, gamma)"),
    "decomposed GELU, half of x": (HEAD, ERF),
    "decomposed GELU, half at the end": (HEAD, ERF_LAST),
    "linear and ReLU": (HEAD, "m0 = MatMul (x, w1) u = Add (b1, m0) n = Relu (u)"),
    "Gemm": ("m = MatMul (n, w) h = Reshape (m, back)", "a = Reshape (x, rows) n = Gemm (a, w1, b1)"),
    "transposed Gemm": (
        "m = MatMul (n, w) h = Reshape (m, back)", "a = Reshape (x, rows) n = Gemm <transB = 1> (a, wt1)",
    ),
    "convolution": (
        "m = Conv (n, kw) f = Reshape (m, flat) h = Transpose <perm = [0, 2, 1]> (f)",
        "t = Transpose <perm = [0, 2, 1]> (x) i = Reshape (t, grid) n = Conv (i, k1, b1)",
    ),
    "BatchNormalization": (
        "m = Conv (n, kw) f = Reshape (m, flat) h = Transpose <perm = [0, 2, 1]> (f)",
        """t = Transpose <perm = [0, 2, 1]> (x) i = Reshape (t, grid)
        n = BatchNormalization (i, scale, b1, average, variance)""",
    ),
    "convolution, then tokens": (
        HEAD,
        """t = Transpose <perm = [0, 2, 1]> (x) i = Reshape (t, grid) cv = Conv (i, k1, b1)
        f = Reshape (cv, to_tokens) n = Transpose <perm = [0, 2, 1]> (f)""",
    ),
    "values of an attention": (HEAD, f"{ATTENTION} v0 = MatMul (x, w1) v = Add (v0, b1) n = MatMul (p, v)"),
    "packed qkv, gathered": (HEAD, QKV),
    "packed qkv, split": (HEAD, SPLIT),
    "packed qkv, sliced": (HEAD, SLICED),
    "gate": (HEAD, "g0 = MatMul (x, w1) g1 = Sigmoid (g0) u = MatMul (x, wt1) n = Mul (g1, u)"),
    "two branches that are added": (HEAD, "a = MatMul (x, w1) b = MatMul (x, wt1) n = Add (a, b)"),
    "a token joined in": (
        "m = MatMul (n, w) h = Abs (m)",
        f"""one_row = Slice (x, zero, one, tokens) nothing = Mul (one_row, zerof) batched = Add (nothing, token)
        {NORM.replace("n =", "n0 =")} n = Concat <axis = 1> (batched, n0)""",
    ),
    "a sum with a constant": (HEAD, "n = Add (x, beta)"),
    "a norm of twice the width": ("a = Reshape (n, narrow) m = MatMul (a, w16) h = Reshape (m, back2)", NORM),
    "patch merging": (MERGE_HEAD, MERGE),
    "pooled": ("m = MatMul (n, w) h = Abs (m)", "u = MatMul (x, w1) n = ReduceMean <keepdims = 1> (u, tokens)"),
    "through a Cast": (HEAD, "u = LayerNormalization (x, gamma, beta) n = Cast <to = 1> (u)"),
}  # fmt: skip
SHIFTED = {
    "MatMul", "separate linears", "Gemm behind a Reshape", "windows", "rolled windows", "no beta", "decomposed norm",
    "Gemm", "transposed Gemm", "convolution", "BatchNormalization", "convolution, then tokens",
    "values of an attention", "packed qkv, gathered", "packed qkv, split", "packed qkv, sliced", "patch merging",
    "a token joined in", "through a Cast", "a sum with a constant", "a norm of twice the width",
}  # fmt: skip
EXTRA = {"zerof": np.float32(0), "merged": np.array([0, 4, 48]), "w16": normal(16, 48), "narrow": np.array([-1, 16]),
         "back2": np.array([-1, 32, 48]), **STEPS}  # fmt: skip


def case_of(name):
    return graph(*SCALED[name], **EXTRA)


@pytest.mark.parametrize("case", SCALED)
def test_a_factor_leaves_every_output_and_every_node(case: str) -> None:
    model = case_of(case)
    before, nodes = [run(model, batch) for batch in (1, 2, 3)], [node.op_type for node in model.graph]
    group, places = places_of(model)
    factor = np.random.default_rng(1).permutation(np.geomspace(1e-2, 1e2, group.linears[0].in_features))
    absorb(model.graph, places, 1 / factor)
    scale_rows(group, factor)
    assert [node.op_type for node in model.graph] == nodes
    for batch, expected in zip((1, 2, 3), before, strict=True):
        np.testing.assert_allclose(run(model, batch), expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("case", SCALED)
def test_the_activation_is_what_was_meant(case: str) -> None:
    model = case_of(case)
    group, places = places_of(model)
    axis = channel_axis(group, shapes_at_batch(model, 2))
    name, width = group.activation.name, group.linears[0].in_features
    factor = np.geomspace(0.1, 10, width)
    shape = [-1 if index == axis else 1 for index in range(len(shapes_at_batch(model, 2)[name]))]
    plain = observed(model, name)
    absorb(model.graph, places, factor)
    np.testing.assert_allclose(observed(model, name), plain * factor.reshape(shape), rtol=1e-4, atol=1e-4)


def observed(model: ir.Model, name):
    copy = model.clone()
    value = next(value for node in copy.graph for value in node.outputs if value.name == name)
    copy.graph.outputs.append(value)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    image = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    return ort.InferenceSession(ir.to_proto(copy).SerializeToString()).run([name], {"input": image})[0]


@pytest.mark.parametrize("case", SCALED)
def test_a_shift_goes_where_constants_add_up_and_nowhere_else(case: str) -> None:
    model = case_of(case)
    _, places = places_of(model, "shift")
    assert (places is not None) == (case in SHIFTED)
    if places is None:
        return
    group = target(model)
    axis, name = channel_axis(group, shapes_at_batch(model, 2)), group.activation.name
    shift, plain = normal(group.linears[0].in_features), observed(model, name)
    shape = [-1 if index == axis else 1 for index in range(plain.ndim)]
    absorb(model.graph, places, shift)
    np.testing.assert_allclose(observed(model, name), plain + shift.reshape(shape), rtol=1e-4, atol=1e-4)


BIASED = {
    "Add behind a MatMul": "m = MatMul (n, w) h = Add (bias, m)",
    "Gemm with a bias": "a = Reshape (n, rows) m = Gemm (a, w, bias) h = Reshape (m, back)",
    "Gemm without": "a = Reshape (n, rows) m = Gemm <transB = 1> (a, wt) h = Reshape (m, back)",
    "two linears": "q0 = MatMul (n, w) q = Add (q0, bias) k0 = MatMul (n, wk) k = Add (k0, bias) h = Mul (q, k)",
}


@pytest.mark.parametrize("case", BIASED)
def test_a_shift_and_its_image_in_the_bias_cancel(case: str) -> None:
    model = graph(BIASED[case])
    before, nodes = run(model, 2), [node.op_type for node in model.graph]
    group, places = places_of(model, "shift")
    shift = normal(32)
    absorb(model.graph, places, -shift)
    for linear, biases in zip(group.linears, present(bias_places(group)), strict=True):
        weight = linear.weight.const_value.numpy()
        absorb(model.graph, biases, shift @ (weight if linear.channel_axis == 1 else weight.T))
    assert [node.op_type for node in model.graph] == nodes
    np.testing.assert_allclose(run(model, 2), before, rtol=1e-3, atol=1e-3)


def test_a_linear_without_a_bias_has_no_place_for_one() -> None:
    assert bias_places(target(graph(HEAD))) is None
    assert bias_places(target(graph("m = MatMul (n, w) h = Add (m, m)"))) is None


def test_a_constant_that_others_read_is_copied() -> None:
    norm = f"{NORM} other = LayerNormalization (x, gamma, beta)"
    model = graph("o = MatMul (other, wk) m = MatMul (n, w) h = Add (m, o)", norm)
    before = run(model, 2)
    group, places = places_of(model)
    factor = np.geomspace(0.1, 30, 32)
    absorb(model.graph, places, 1 / factor)
    scale_rows(group, factor)
    np.testing.assert_allclose(run(model, 2), before, rtol=2e-4, atol=2e-4)
    assert {"gamma", "gamma.absorbed"} <= set(model.graph.initializers)


REFUSED = {
    "another reader": ("e = Exp (n) p = ReduceMean <keepdims = 1> (e, last) m = MatMul (n, w) h = Add (m, p)", NORM),
    "GELU": (HEAD, "n = Gelu (x)"),
    "the residual stream": (HEAD + " k = Relu (h)", "f = MatMul (x, w1) g = Gelu (f) n = Add (x, g)"),
    "the input of the patch embedding's norm": (HEAD, "n = Softmax <axis = -1> (x)"),
    "a transpose of channels and tokens": (
        "t = Transpose <perm = [0, 2, 1]> (n) a = Reshape (t, rows) m = MatMul (a, w) h = Reshape (m, back)",
        NORM,
    ),
    "channels changed about": (
        """a = Slice (n, zero, half_width, last) b = Slice (n, zero, half_width, last) j = Concat <axis = 2> (b, a)
        h = MatMul (j, w)""",
        NORM,
    ),
    "something else joined in": ("j = Concat <axis = 1> (n, x) m = MatMul (j, w) h = Abs (m)", NORM),
    "a weight shared with another linear": ("y = Relu (x) b = MatMul (y, w) a = MatMul (n, w) h = Add (a, b)", NORM),
    "a computed gamma": (HEAD, "y = Abs (gamma) n = LayerNormalization (x, y, beta)"),
    "a sum with the image's own patches": (HEAD, "n = Mul (x, x)"),
    "values that are keys as well": (HEAD, QKV.replace("[0, 1, 3, 2]> (k)", "[0, 1, 3, 2]> (v)")),
    "values that something else reads": (
        HEAD, f"{ATTENTION} v = MatMul (x, w1) u = Exp (v) n0 = MatMul (p, v) n = Add (n0, u)",
    ),
    "a weight of two layers": (HEAD, "a = MatMul (x, w1) b = Gelu (a) n = MatMul (b, w1)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_where_outputs_would_change(case: str) -> None:
    model = graph(*REFUSED[case], half_width=np.array([16]))
    before = ir.to_proto(model).SerializeToString()
    group = next(found for found in find_linear_groups(model) if found.linears[0].weight.name == "w"
                 and (found.activation.name == "n" or found.linears[0].node.inputs[0].name in ("a", "j")))  # fmt: skip
    assert find_places(group, shapes_at_batch(model, 2)) is None
    assert ir.to_proto(model).SerializeToString() == before


def test_an_explicit_mul_serves_the_linears_and_nobody_else() -> None:
    model = graph("e = Exp (n) q = MatMul (n, w) k = MatMul (n, wk) s = Add (q, k) p = MatMul (e, wk) h = Add (s, p)",
                  "n = Gelu (x)")  # fmt: skip
    before, count = run(model, 2), len(model.graph)
    group = next(found for found in find_linear_groups(model) if len(found.linears) == 2)
    factor = np.geomspace(0.1, 10, 32)
    scaled = insert_scaling(model.graph, group, 1 / factor, present(channel_axis(group, shapes_at_batch(model, 2))))
    # wk is read by a third linear, so its rows are scaled in a copy of the graph's constant here
    for linear in group.linears:
        linear.node.replace_input_with(1, _scaled_copy(model, linear, factor))
    assert len(model.graph) == count + 1
    assert scaled.activation.producer().op_type == "Mul"
    np.testing.assert_allclose(run(model, 2), before, rtol=1e-3, atol=1e-3)


def _scaled_copy(model: ir.Model, linear, factor):
    array = (linear.weight.const_value.numpy() * factor[:, None]).astype(np.float32)
    tensor = ir.tensor(array, name=f"{linear.node.name}.copy")
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(present(value))
    return value


def test_the_channel_axis_is_followed_through_transposes() -> None:
    tokens = graph(HEAD, "t = Transpose <perm = [0, 2, 1]> (x) u = Gelu (t) n = Transpose <perm = [0, 2, 1]> (u)")
    group = target(tokens)
    shapes = shapes_at_batch(tokens, 2)
    assert (group.activation.name, channel_axis(group, shapes)) in (("n", 2), ("u", 1))
    model = graph(*SCALED["convolution"])
    assert channel_axis(target(model), shapes_at_batch(model, 2)) == 1
