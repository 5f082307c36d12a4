"""Steps are tried one on the other and kept where they gain; nothing else decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from readout_vit import readout_vit

from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import observed_tensors
from vitdeploy.quantization.rotation import Bases
from vitdeploy.quantization.search import (
    WORTHWHILE_DB,
    Proposals,
    SearchOptions,
    Wider,
    propose,
    search,
)
from vitdeploy.records import PairedSpeed, Treatment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(readout_vit(1))


@pytest.fixture(scope="module")
def plan(prepared):
    return make_plan(prepared.linears, prepared.attentions, Intent("int8", "onnxruntime"))


@pytest.fixture(scope="module")
def observers(prepared, plan):
    """Activations with outlier channels, so that every step has something to propose."""
    rng, found = np.random.default_rng(0), {}
    for name, axis in observed_tensors(prepared, plan).items():
        width = prepared.shapes[name][-1]
        spread = np.geomspace(0.02, 50, width)
        middle = 3 * spread * (-1) ** np.arange(width)
        rows = rng.standard_t(4, (256, 4, width)) * spread + middle
        found[name] = TensorObserver(name, axis)
        found[name].update(rows.astype(np.float32), np.arange(256, dtype=np.uint64))
    return found


def proposals(prepared, observers, **options: Any) -> Proposals:
    return Proposals(Bases(prepared, observers, Format("float32", cpu=True)), SearchOptions(**options))


def scored(values):
    """Return a score that hands out ``values`` in turn, and the plans that it was asked for."""
    asked, left = [], list(values)

    def score(plan):
        asked.append(plan)
        return left.pop(0)

    return score, asked


def treatments(plan):
    return {entry.group.rpartition(".")[2]: entry.treatment for entry in plan.entries if entry.treatment}


def test_what_gains_is_kept_and_the_next_step_builds_on_it(prepared, plan, observers) -> None:
    score, asked = scored([20.0, 25.0, 24.0, 30.0, 31.5, 32.6, 33.0, 33.1])
    found = search(plan, proposals(prepared, observers), score)
    assert [(trial.step, trial.kept) for trial in found.trials] == [
        ("minmax", True), ("ranges of least error", True), ("channel scaling", False), ("channel shift", True),
        ("scaling by Muls", True), ("rotation of values", True),
        ("rounding by GPTQ", True), ("bias correction", False),
    ]  # fmt: skip
    assert found.plan == asked[6]
    assert found.plan.rotated == ("values",)
    chosen = treatments(found.plan)
    assert chosen["qkv"].shifted
    assert chosen["fc2"].scaled_by == "mul"
    assert {treatment.rounding for treatment in chosen.values()} == {"gptq"}
    assert not any(treatment.bias_corrected for treatment in chosen.values())
    assert treatments(asked[0])["qkv"] == Treatment()


@pytest.mark.parametrize("gain", [-3.0, 0.0, WORTHWHILE_DB - 0.01])
def test_a_gain_within_the_noise_buys_nothing(prepared, plan, observers, gain) -> None:
    score, asked = scored([20.0] + [20.0 + gain] * 8)
    found = search(plan, proposals(prepared, observers), score)
    assert found.plan == asked[0]
    assert [trial.kept for trial in found.trials] == [True] + [False] * 7


def test_nodes_must_gain_more(prepared, plan, observers) -> None:
    score, _ = scored([20.0, 20.0, 20.0, 20.0, 20.9, 20.0, 20.0, 20.0, 20.0])
    assert "mul" not in {
        t.scaled_by for t in treatments(search(plan, proposals(prepared, observers), score).plan).values()
    }


def test_nan_never_wins_and_never_stays(prepared, plan, observers) -> None:
    score, asked = scored([math.nan, 10.0, *[math.nan] * 7])
    found = search(plan, proposals(prepared, observers), score)
    assert found.plan == asked[1]


def test_options_close_steps(prepared, plan, observers) -> None:
    def names(**options: Any):
        steps = proposals(prepared, observers, **options)
        steps.start(plan)
        return [step.name for step in steps.steps()]

    assert names(methods=("mse",), scaling="off", steps=frozenset()) == []
    last = ["rounding by GPTQ", "bias correction"]
    turned = ["rotation of values"]
    assert names(methods=("mse",)) == ["channel scaling", "channel shift", "scaling by Muls", *turned, *last]
    assert names(methods=("mse",), rounding="gptq") == names(methods=("mse",), rounding="nearest")
    assert names(methods=("mse",), rounding="gptq", scaling="off") == [*turned, *last[1:]]
    assert names(scaling="off") == ["ranges of least error", *turned, *last]
    assert names(methods=("mse",), scaling="off", steps=frozenset({"streams"})) == ["rotation of residual streams"]
    assert names(scaling=0.5, steps=frozenset({"ranges", "mul"})) == ["ranges of least error", "scaling by Muls"]
    start = proposals(prepared, observers, methods=("percentile",), percent=99.0, scaling=0.5).start(plan)
    assert treatments(start)["qkv"] == Treatment(ranges="percentile", percent=99.0, scaling=0.5)


def test_a_treatment_that_a_plan_has_is_left_alone(prepared, plan, observers) -> None:
    own = Treatment(ranges="entropy", scaling=0.9)
    entries = [
        entry.model_copy(update={"treatment": own}) if entry.group.endswith("fc1") else entry for entry in plan.entries
    ]
    edited = plan.model_copy(update={"entries": tuple(entries)})
    score, _ = scored([20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0])
    found = treatments(search(edited, proposals(prepared, observers), score).plan)
    assert found["fc1"] == own
    assert found["qkv"] != own


def test_weights_of_large_graphs_are_rotated_and_rounded_together_with_effort_best_only(
    prepared, plan, observers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.quantization.search.MOST_WEIGHT_PRODUCTS", 1e3)
    for effort, tried in (("default", False), ("best", True)):
        steps = proposals(prepared, observers, effort=effort)
        steps.start(plan)
        names = [step.name for step in steps.steps()]
        assert ("rounding by GPTQ" in names) == ("rotation of values" in names) == tried
        assert "channel scaling" in names


def test_layer_errors_alone_choose_scaling_shift_and_muls(prepared, plan, observers) -> None:
    chosen = treatments(propose(plan, proposals(prepared, observers)))
    assert chosen["qkv"].scaled_by == "constants"
    assert chosen["qkv"].shifted
    assert chosen["fc2"].scaled_by == "mul"
    assert not chosen["fc2"].shifted, "a GELU takes no shift"


def test_methods_that_were_asked_for_stay(prepared, plan, observers) -> None:
    chosen = treatments(propose(plan, proposals(prepared, observers, methods=("percentile",), percent=99.5)))
    assert {(t.ranges, t.percent) for t in chosen.values()} == {("percentile", 99.5)}


@pytest.fixture(scope="module")
def for_openvino(prepared):
    return make_plan(prepared.linears, prepared.attentions, Intent("int8", "openvino"))


def widened(prepared, observers) -> Proposals:
    """Return proposals whose only step puts attention into 8 bits."""
    plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "openvino", "mha"))
    names = frozenset(attention.name for attention in prepared.attentions)
    options = SearchOptions(methods=("minmax",), scaling="off", steps=frozenset())
    wider = [Wider("attention in 8 bits", plan, names)]
    return Proposals(Bases(prepared, observers, Format(openvino=True)), options, wider)


@pytest.mark.parametrize(
    ("best", "found", "kept"),
    [(40.0, 39.1, True), (40.0, 38.9, True), (40.0, 34.9, False), (30.0, 29.1, True), (30.0, 28.9, False),
     (math.nan, math.nan, False)],
)  # fmt: skip
def test_attention_goes_to_8_bits_where_the_logits_hardly_lose_or_keep_enough(
    prepared, for_openvino, observers, best: float, found: float, kept: bool
) -> None:
    score, _ = scored([best, found])
    result = search(for_openvino, widened(prepared, observers), score)
    assert [trial.kept for trial in result.trials] == [True, kept]
    assert result.plan.profile == ("mha" if kept else "linear")
    assert {entry.precision for entry in result.plan.entries if "attention" in entry.group} == {
        "int8" if kept else "fp32"
    }


@pytest.mark.parametrize(
    ("found", "interval", "kept"),
    [(39.5, (1.1, 1.3), True), (39.5, (0.9, 1.1), False), (39.5, (0.7, 0.9), False), (30.0, None, False)],
    ids=["faster", "no certain gain", "slower", "less accurate"],
)
def test_where_it_is_timed_a_step_for_speed_must_be_faster_too(
    prepared, for_openvino, observers, found: float, interval: tuple[float, float] | None, kept: bool
) -> None:
    speeds = () if interval is None else (PairedSpeed(batch=1, speedup=1.0, interval=interval),)
    timed = []

    def time_pair(before, after):
        timed.append((before.profile, after.profile))
        return speeds

    score, _ = scored([40.0, found])
    result = search(for_openvino, widened(prepared, observers), score, time_pair=time_pair)
    assert [(trial.kept, trial.speeds) for trial in result.trials] == [(True, ()), (kept, speeds)]
    assert result.plan.profile == ("mha" if kept else "linear")
    assert timed == ([("linear", "mha")] if interval is not None else []), "what the logits refuse is not timed"
