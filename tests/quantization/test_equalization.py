"""Channel scaling: its factors, what they gain, and that outliers planted in front of a linear do no harm."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from outliers import explicit_outliers, gelu_outliers, norm_outliers, outlier_factors, value_outliers
from readout_vit import digits, readout_vit, run

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.linear_groups import find_linear_groups
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.quantization.choice import RangeChoice
from vitdeploy.quantization.collector import Collector
from vitdeploy.quantization.equalization import gain_db, smoothing_factor
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared, prepare
from vitdeploy.quantization.realize import observed_tensors, realize
from vitdeploy.sessions import SessionOptions

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


@pytest.fixture(scope="module")
def plain():
    return readout_vit(2)


def blocked_outliers(model):
    """Outliers whose Mul is followed by a Max that no factor passes."""
    model = prepare(model)
    for seed, group in enumerate(found for found in find_linear_groups(model) if found.name.endswith("fc2")):
        width = group.linears[0].in_features
        explicit_outliers(model, group, outlier_factors(width, seed=seed))
        grown = group.uses[0][0].inputs[0]
        low = ir.Value(name=f"{grown.name}.low", const_value=ir.tensor(np.float32(-1e30)), shape=ir.Shape(()))
        low.dtype = ir.DataType.FLOAT
        model.graph.register_initializer(low)
        node = ir.node("Max", [grown, low], name=f"{grown.name}/Max")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{grown.name}.max", grown.type, grown.shape
        model.graph.insert_after(grown.producer(), node)
        group.uses[0][0].replace_input_with(0, node.outputs[0])
    return model


def quantized(model, choice, profile="linear"):
    """Return the quantized graph and its plan, calibrated on 64 digits."""
    prepared = Prepared.of(model)
    plan = make_plan(prepared.linears, (), Intent("int8", "onnxruntime", profile))
    return realize(prepared, plan, observed(prepared, plan), choice, Format("float32", cpu=True))


def observed(prepared, plan):

    def opened(graph):
        return open_graph(graph, SessionOptions(threads=1))

    with Collector(prepared.graph, observed_tensors(prepared, plan), opened) as collector:
        return collector.observe([digits("train")[0][:64]])


def sqnr(before, after):
    images, _ = digits("test")
    return logits_sqnr_db(run(after, images), run(before, images))


PLANTED = {"LayerNorm": norm_outliers, "GELU": gelu_outliers, "values": value_outliers}


@pytest.mark.parametrize("where", PLANTED)
def test_outliers_are_folded_away_without_a_node(plain, where):
    """The graph with outliers computes the same function; a range for all channels together collapses."""
    model = PLANTED[where](plain.clone())
    np.testing.assert_allclose(run(model, digits("test")[0]), run(plain, digits("test")[0]), rtol=1e-2, atol=1e-2)
    reference = sqnr(plain, quantized(plain.clone(), RangeChoice()).model)
    assert sqnr(model, quantized(model, RangeChoice()).model) < reference - 15
    scaled = quantized(model, RangeChoice(alpha=0.5))
    assert sqnr(model, scaled.model) >= reference - 3
    pairs = {"QuantizeLinear", "DequantizeLinear"}
    assert sum(node.op_type not in pairs for node in scaled.model.graph) == len(model.graph)


def test_where_no_constant_takes_the_factor_a_mul_does(plain):
    model = blocked_outliers(plain.clone())
    reference = sqnr(plain, quantized(plain.clone(), RangeChoice()).model)
    assert sqnr(model, quantized(model, RangeChoice(alpha=0.5)).model) < reference - 15
    scaled = quantized(model, RangeChoice(alpha=0.5, mul=True))
    assert sqnr(model, scaled.model) >= reference - 3
    by = {entry.group: entry.scaled_by for entry in scaled.plan.entries if entry.scaled_by is not None}
    assert {name for name, how in by.items() if how == "mul"} == {name for name in by if name.endswith("fc2")}
    muls = [node for node in scaled.model.graph if str(node.name).endswith("/Scaling")]
    assert len(muls) == 2


def test_a_plan_replays_its_muls_and_constants(plain):
    model = blocked_outliers(plain.clone())
    first = quantized(model, RangeChoice(alpha=0.5, mul=True))
    prepared = Prepared.of(model)
    observers = observed(prepared, first.plan)
    again = realize(prepared, first.plan, observers, RangeChoice(), Format("float32", cpu=True))
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(first.model).SerializeToString()
    assert again.plan == first.plan


def test_the_gain_is_that_of_the_rounding_error(plain):
    group = next(found for found in find_linear_groups(prepare(plain.clone())) if found.name.endswith("fc2"))
    rng, width = np.random.default_rng(0), group.linears[0].in_features
    x = (rng.standard_normal((4096, width)) * outlier_factors(width)).astype(np.float32)
    amax = np.abs(x).max(axis=0)
    weight = group.linears[0].weight.const_value.numpy()
    factor = smoothing_factor(amax, np.abs(weight).max(axis=1), 0.5)

    def error(values, rows):
        step = np.abs(values).max() / 127
        return float(np.square((np.rint(values / step) * step - values) @ rows).mean())

    # channels far below one step round to zero, which costs less than a step's worth: only a bound then
    measured = 10 * np.log10(error(x, weight) / error(x / factor, weight * factor[:, None]))
    expected = gain_db(group, amax, factor, float(amax.max()))
    assert 3 < measured <= expected + 0.5
    dense = rng.uniform(-1, 1, (4096, width)).astype(np.float32) * np.linspace(1, 4, width, dtype=np.float32)
    amax = np.abs(dense).max(axis=0)
    factor = smoothing_factor(amax, np.abs(weight).max(axis=1), 0.9)
    measured = 10 * np.log10(error(dense, weight) / error(dense / factor, weight * factor[:, None]))
    assert measured == pytest.approx(gain_db(group, amax, factor, float(amax.max())), abs=0.3)
