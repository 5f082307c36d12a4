"""Channel scaling and shift: factors, and that outliers planted in front of a linear do no harm."""

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
from vitdeploy.quantization.collector import Collector
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.plan import Intent, Profile, make_plan
from vitdeploy.quantization.prepared import Prepared, prepare
from vitdeploy.quantization.realize import Realizer, observed_tensors
from vitdeploy.quantization.scaling import smoothing_factor
from vitdeploy.records import Treatment
from vitdeploy.sessions import SessionOptions

pytestmark = pytest.mark.slow

amaxes = hnp.arrays(np.float32, 16, elements=st.floats(0, 1e4, width=32))


@settings(max_examples=50)
@given(amaxes, amaxes, st.floats(0, 1))
def test_factors_are_positive_and_spare_unused_channels(activation, weight, alpha) -> None:
    factor = smoothing_factor(activation, weight, alpha)
    assert (factor > 0).all()
    assert np.isfinite(factor).all()
    assert (factor[(activation == 0) | (weight == 0)] == 1).all()


def test_factor_is_that_of_the_paper_up_to_a_constant() -> None:
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


def quantized(model, treatment, profile: Profile = "linear"):
    """Return the quantized graph and its plan, calibrated on 64 digits, every group treated alike."""
    prepared = Prepared.of(model)
    attentions = prepared.attentions if profile == "mha" else ()
    plan = treated(make_plan(prepared.linears, attentions, Intent("int8", "onnxruntime", profile)), treatment)
    return Realizer(prepared, observed(prepared, plan), Format("float32", cpu=True)).realize(plan)


def treated(plan, treatment, groups: str = ""):
    entries = [
        entry.model_copy(update={"treatment": treatment})
        if entry.precision == "int8" and entry.group.endswith(groups)
        else entry
        for entry in plan.entries
    ]
    return plan.model_copy(update={"entries": tuple(entries)})


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
def test_outliers_are_folded_away_without_a_node(plain, where: str) -> None:
    """The graph with outliers computes the same function; a range for all channels together collapses."""
    model = PLANTED[where](plain.clone())
    np.testing.assert_allclose(run(model, digits("test")[0]), run(plain, digits("test")[0]), rtol=1e-2, atol=1e-2)
    reference = sqnr(plain, quantized(plain.clone(), Treatment()).model)
    assert sqnr(model, quantized(model, Treatment()).model) < reference - 15
    scaled = quantized(model, Treatment(scaling=0.5))
    assert sqnr(model, scaled.model) >= reference - 3
    pairs = {"QuantizeLinear", "DequantizeLinear"}
    assert sum(node.op_type not in pairs for node in scaled.model.graph) == len(model.graph)


def test_where_no_constant_takes_the_factor_a_mul_does(plain) -> None:
    model = blocked_outliers(plain.clone())
    reference = sqnr(plain, quantized(plain.clone(), Treatment()).model)
    left_out = quantized(model, Treatment(scaling=0.5))
    assert {entry.group: entry.treatment.scaled_by for entry in left_out.plan.entries if entry.treatment} == {
        f"blocks.{block}.{name}": None if name.endswith("fc2") else "constants"
        for block in (0, 1)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert sqnr(model, left_out.model) < reference - 15
    prepared = Prepared.of(model)
    plan = treated(left_out.plan, Treatment(scaling=0.5, scaled_by="mul"), "fc2")
    scaled = Realizer(prepared, observed(prepared, plan), Format("float32", cpu=True)).realize(plan)
    assert sqnr(model, scaled.model) >= reference - 3
    assert scaled.plan == plan
    assert sum(str(node.name).endswith("/Scaling") for node in scaled.model.graph) == 2


@pytest.mark.parametrize(
    "treatment",
    [
        Treatment(scaling=0.5, shifted=True, bias_corrected=True, ranges="mse"),
        Treatment(scaling=0.8, scaled_by="mul", ranges="percentile", percent=99.9),
    ],
)
def test_a_plan_replays_to_the_same_bytes(plain, treatment: Treatment) -> None:
    first = quantized(plain.clone(), treatment)
    prepared = Prepared.of(plain.clone())
    again = Realizer(prepared, observed(prepared, first.plan), Format("float32", cpu=True)).realize(first.plan)
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(first.model).SerializeToString()
    assert again.plan == first.plan


def test_the_factors_of_a_quantized_attention_are_left_as_they_were_observed(plain) -> None:
    plan = quantized(plain.clone(), Treatment(scaling=0.5, shifted=True), "mha").plan
    by = {entry.group.rpartition(".")[2]: entry.treatment for entry in plan.entries if entry.treatment}
    assert (by["proj"].scaling, by["proj"].shifted) == (None, False)
    assert (by["qkv"].scaling, by["qkv"].shifted) == (0.5, True)
    assert by["attention"] == Treatment()
