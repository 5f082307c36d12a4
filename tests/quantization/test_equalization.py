"""Folding a factor into a LayerNorm changes no output, and is refused wherever it would."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitdeploy.graph.linear_groups import find_linear_groups
from vitdeploy.quantization.equalization import equalize, foldable_norm, smoothing_factor
from vitdeploy.quantization.prepared import prepare

RNG = np.random.default_rng(0)
NORM = "n = LayerNormalization (x, gamma, beta)"
DECOMPOSED = """mean = ReduceMean <keepdims = 1> (x, last) d = Sub (x, mean) sq = Mul (d, d)
    var = ReduceMean <keepdims = 1> (sq, last) root = Sqrt (var) unit = Div (d, root)
    g = Mul (unit, gamma) n = Add (g, beta)"""


def normal(*shape, spread=1.0):
    return (RNG.standard_normal(shape) * np.geomspace(1 / spread, spread, shape[-1])).astype(np.float32)


def graph(body, norm=NORM, **constants):
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, 3, 8, 8] input) => (float[batch, 20] logits) {{
        c = Conv <strides = [2, 2]> (input, patch) r = Reshape (c, to_tokens) x = Transpose <perm = [0, 2, 1]> (r)
        {norm} {body}
        pooled = ReduceMean <keepdims = 0> (h, tokens) logits = Gemm (pooled, head)
    }}"""
    values = {
        "patch": normal(32, 3, 2, 2), "to_tokens": np.array([0, 32, 16]), "gamma": normal(32, spread=8),
        "beta": normal(32), "w": normal(32, 48), "wk": normal(32, 48), "wt": normal(48, 32),
        "rows": np.array([-1, 32]), "back": np.array([-1, 16, 48]), "tokens": np.array([1]), "last": np.array([2]),
        "head": normal(48, 20), "map": np.array([0, 4, 4, 32]), "windows": np.array([-1, 2, 2, 2, 2, 32]),
        "zero": np.array([0]), "one": np.array([1]), "many": np.array([99]), **constants,
    }  # fmt: skip
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.inputs:
            if value.name in values and value.name not in model.graph.initializers:
                value.const_value = ir.tensor(np.asarray(values[value.name]), name=value.name)
                model.graph.register_initializer(value)
    return prepare(model)


def run(model, seed=0):
    image = np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": image})[0]


def group_of(model):
    (group,) = [found for found in find_linear_groups(model) if not found.obstacle]
    return group


FOLDABLE = {
    "MatMul": ("h = MatMul (n, w)", NORM),
    "separate": ("q = MatMul (n, w) k = MatMul (n, wk) h = Add (q, k)", NORM),
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
    "no beta": ("h = MatMul (n, w)", "n = LayerNormalization (x, gamma)"),
    "decomposed": ("h = MatMul (n, w)", DECOMPOSED),
}


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("case", FOLDABLE)
def test_outputs_stay_what_they_were_and_no_node_changes(case, alpha):
    model = graph(*FOLDABLE[case])
    before, nodes = run(model), [node.op_type for node in model.graph]
    factor = equalize(model.graph, group_of(model), np.geomspace(0.1, 30, 32).astype(np.float32), alpha)
    assert factor is not None
    assert factor.std() > 0.1
    np.testing.assert_allclose(run(model), before, rtol=2e-4, atol=2e-4)
    assert [node.op_type for node in model.graph] == nodes


def test_the_activation_is_divided_and_the_weight_multiplied():
    model = graph("h = MatMul (n, w)")
    weight, gamma = (model.graph.initializers[name].const_value.numpy().copy() for name in ("w", "gamma"))
    factor = equalize(model.graph, group_of(model), np.geomspace(0.1, 30, 32).astype(np.float32), 0.5)
    np.testing.assert_allclose(model.graph.initializers["w"].const_value.numpy(), weight * factor[:, None], rtol=1e-6)
    np.testing.assert_allclose(model.graph.initializers["gamma"].const_value.numpy(), gamma / factor, rtol=1e-6)


def test_a_gamma_that_another_norm_reads_is_copied():
    norm = f"{NORM} other = LayerNormalization (x, gamma, beta)"
    model = graph("m = MatMul (n, w) o = MatMul (other, wk) h = Add (m, o)", norm)
    before = run(model)
    group = next(found for found in find_linear_groups(model) if found.activation.name == "n")
    assert equalize(model.graph, group, np.geomspace(0.1, 30, 32).astype(np.float32), 0.5) is not None
    np.testing.assert_allclose(run(model), before, rtol=2e-4, atol=2e-4)
    assert {"gamma", "gamma.equalised"} <= set(model.graph.initializers)


REFUSED = {
    "another reader": ("m = MatMul (n, w) e = Exp (n) p = ReduceMean <keepdims = 1> (e, last) h = Add (m, p)", NORM),
    "no norm": ("h = MatMul (n, w)", "n = Relu (x)"),
    "a transpose between": (
        "t = Transpose <perm = [0, 2, 1]> (n) a = Reshape (t, rows) m = MatMul (a, w) h = Reshape (m, back)",
        NORM,
    ),
    "channels cut apart": (
        """a = Slice (n, zero, half, last) b = Slice (n, half, many, last) j = Concat <axis = 2> (b, a)
        h = MatMul (j, w)""",
        NORM,
    ),
    "something else joined in": ("j = Concat <axis = 1> (n, x) m = MatMul (j, w) h = Abs (m)", NORM),
    "a weight shared with another linear": ("a = MatMul (n, w) y = Relu (x) b = MatMul (y, w) h = Add (a, b)", NORM),
    "a norm of another width": (
        "a = Reshape (n, narrow) m = MatMul (a, w16) h = Reshape (m, back)", NORM
    ),
    "a computed gamma": ("h = MatMul (n, w)", "y = Abs (gamma) n = LayerNormalization (x, y, beta)"),
    "a bias that is added, not a norm": ("h = MatMul (n, w)", "n = Add (x, beta)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_where_outputs_would_change(case):
    model = graph(*REFUSED[case], w16=normal(16, 48), narrow=np.array([-1, 16]), half=np.array([16]))
    before = ir.to_proto(model).SerializeToString()
    group = next(found for found in find_linear_groups(model) if found.linears[0].weight.name in ("w", "w16"))
    assert foldable_norm(group) is None
    assert equalize(model.graph, group, np.ones(group.linears[0].in_features, np.float32), 0.5) is None
    assert ir.to_proto(model).SerializeToString() == before


amaxes = hnp.arrays(np.float32, 16, elements=st.floats(0, 1e4, width=32))


@settings(max_examples=50)
@given(amaxes, amaxes, st.floats(0, 1))
def test_factors_are_positive_and_spare_unused_channels(activation, weight, alpha):
    factor = smoothing_factor(activation, weight, alpha)
    assert (factor > 0).all()
    assert np.isfinite(factor).all()
    assert (factor[(activation == 0) | (weight == 0)] == 1).all()


def test_factor_is_that_of_the_paper_up_to_a_constant():
    activation, weight = np.array([1, 4, 16, 2], "f4"), np.array([1, 2, 1, 8], "f4")
    factor = smoothing_factor(activation, weight, 0.5)
    expected = np.sqrt(activation / weight)
    np.testing.assert_allclose(factor / factor[0], expected / expected[0], rtol=1e-5)
    assert np.exp(np.log(factor).mean()) == pytest.approx(1.0, rel=1e-5)
