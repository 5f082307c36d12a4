"""Where the time of rows goes, from a bench to the page and to the difference of two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_reports import build, rows, timing
from small_vit import write_small_vit

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
from vitdeploy.benching.layers import interquartile_mean
from vitdeploy.errors import UsageError
from vitdeploy.measure.layer_changes import compare_profiles
from vitdeploy.records import LayerCost, LayerProfile, Report, Row
from vitdeploy.report import compare, layer_change_tables, layer_table, read_report, write_report
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow

QUICK = BenchOptions(
    rounds=3, iterations=4, warmup=1, fill_s=0.0, samples=40, threads=1, processes=False, image_to_label=False,
    energy_s=0.0, per_layer=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("layers")
    model = write_small_vit(folder / "model.onnx", "fp32")
    int8 = quantize(
        model, folder / "int8.onnx", precision="int8", target="onnxruntime", calibration="digits:train",
        options=QuantizeOptions(samples=32),
    )  # fmt: skip
    return bench([model, int8], "digits", options=QUICK)


def test_profiled_rows_have_layers_whose_shares_make_the_whole(profiled: Report) -> None:
    fp32, int8 = profiled.rows
    assert fp32.layer_profile is not None
    assert int8.layer_profile is not None
    for row in (fp32.layer_profile, int8.layer_profile):
        assert (row.batch, row.calls) == (1, 40)
        assert row.call_ms > 0
        assert sum(row.by_part().values()) == pytest.approx(row.layers_ms)
        for part in row.by_part():
            assert sum(row.precisions_of(part).values()) == pytest.approx(1)
    assert "conversion" not in fp32.layer_profile.by_part()
    assert int8.layer_profile.by_part()["conversion"] > 0
    assert int8.layer_profile.precisions_of("mlp")["int8"] > 0
    assert set(fp32.layer_profile.precisions_of("mlp")) == {"fp32"}


def test_a_report_keeps_its_layers_and_shows_them(profiled: Report, tmp_path: Path) -> None:
    write_report(profiled, tmp_path)
    assert read_report(tmp_path).rows == profiled.rows
    page = render_html(profiled)
    assert page.count('<table class="parts"') == 2
    assert "Layers that differ most from model.onnx" in page
    assert "## Where the time goes" in render_markdown(profiled)
    assert layer_table(profiled).row_count >= 7


def test_the_difference_of_two_rows_names_what_was_added(profiled: Report) -> None:
    (change,) = compare(profiled, profiled, rows=("model.onnx", "int8.onnx")).layers
    by_part = {one.part: one for one in change.parts}
    assert by_part["conversion"].before_ms == 0
    assert by_part["conversion"].after_ms > 0
    assert sum(one.after_ms - one.before_ms for one in change.parts) == pytest.approx(
        change.after_ms - change.before_ms
    )
    sizes = [abs(one.after_ms - one.before_ms) for one in change.layers]
    assert sizes == sorted(sizes, reverse=True)
    added = [one for one in change.layers if not one.before]
    what = ("QuantizeLinear uint8", "Add fp32")  # which of them are among the largest is a matter of the processor
    assert any(words in text for one in added for text in one.after for words in what)
    assert len(layer_change_tables([change])) == 2


def _profile(*layers: tuple[str, float, tuple[str, ...]]) -> LayerProfile:
    costs = [
        LayerCost(name=name, operator="Op", precision="fp32", part="mlp", ms=ms, sources=sources)
        for name, ms, sources in layers
    ]
    return LayerProfile(batch=1, calls=1, call_ms=1.0, layers=tuple(costs))


def test_layers_that_share_a_node_of_the_model_are_held_against_each_other_whatever_is_fused() -> None:
    fused = _profile(("BiasGelu", 2.0, ("fc1/Add", "act/Gelu")), ("fc2", 1.0, ("fc2/MatMul",)))
    split = _profile(("Add", 1.5, ("fc1/Add",)), ("Gelu", 2.5, ("act/Gelu",)), ("Quantize", 0.25, ("q",)))
    before, after = (rows()[1].model_copy(update={"layer_profile": profile}) for profile in (fused, split))
    change = compare_profiles(before, after)
    assert change is not None
    assert [(one.before, one.after, one.before_ms, one.after_ms) for one in change.layers] == [
        (("BiasGelu (Op fp32)",), ("Add (Op fp32)", "Gelu (Op fp32)"), 2.0, 4.0),
        (("fc2 (Op fp32)",), (), 1.0, 0.0),
        ((), ("Quantize (Op fp32)",), 0.0, 0.25),
    ]
    assert compare_profiles(before, rows()[1]) is None


def test_rows_of_the_same_name_are_compared_and_an_unknown_one_is_refused(profiled: Report) -> None:
    found = compare(profiled, profiled)
    assert [(change.before, change.after) for change in found.layers] == [("model.onnx",) * 2, ("int8.onnx",) * 2]
    assert all(one.before_ms == one.after_ms for change in found.layers for one in change.layers)
    with pytest.raises(UsageError, match=r"has no row 'none\.onnx', expected one of 'model\.onnx', 'int8\.onnx'"):
        compare(profiled, profiled, rows=("model.onnx", "none.onnx"))


def _with_layers(name: str, p50_ms: float, **parts: float) -> Row:
    layers = tuple(
        LayerCost(name=f"{part}-{name}", operator="Add", precision="fp32", part=part, ms=ms, sources=(part,))
        for part, ms in parts.items()
    )
    (row,) = (row for row in rows() if row.name == name)
    profile = LayerProfile(batch=1, calls=40, call_ms=2.0, layers=layers)
    speed: dict[str, Any] = {"speedup": 1.93 / p50_ms, "speedup_ci95": (1.9 / p50_ms, 2.0 / p50_ms)}
    found = {"layer_profile": profile, "provider": "CPUExecutionProvider", "timings": (timing(p50_ms, **speed),)}
    return row.model_copy(update=found)


@pytest.mark.parametrize(("int8_ms", "told"), [(0.5, True), (0.2, False)])
def test_the_verdict_says_in_which_parts_int8_loses(int8_ms: float, told: bool) -> None:
    fp32 = _with_layers("digits.onnx", 0.342, attention=0.2, mlp=0.2, norm=0.05)
    int8 = _with_layers("digits.int8.onnxruntime.onnx", int8_ms, attention=0.3, mlp=0.1, norm=0.05, conversion=0.15)
    text = (
        "By its layers, digits.int8.onnxruntime.onnx loses time in: Quantize, dequantize, cast +0.150 ms, "
        "Attention +0.100 ms against digits.onnx."
    )
    verdict = build((rows()[0], fp32, int8)).verdict
    assert (text in verdict) is told
    assert any(line.startswith("INT8 under ONNX Runtime is slower") for line in verdict) is told


def test_a_profiler_that_fails_costs_the_row_nothing_but_a_note(
    tiny_onnx: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no profile today")

    monkeypatch.setattr(OnnxRuntimeSession, "layer_times", broken)
    (row,) = bench([tiny_onnx], "digits", baseline=tiny_onnx, options=QUICK).rows
    assert row.status == "ok"
    assert row.timings
    assert row.layer_profile is None
    assert "how long its layers take is unknown: no profile today" in row.notes


def test_nothing_is_profiled_unless_it_is_asked_for(tiny_onnx: OnnxModel) -> None:
    report = bench([tiny_onnx], "digits", baseline=tiny_onnx, options=replace(QUICK, per_layer=False))
    assert report.rows[0].layer_profile is None
    assert "Where the time goes" not in render_html(report)


def test_one_slow_call_does_not_move_a_layers_time() -> None:
    assert interquartile_mean(np.array([2.0, 2.0, 3.0, 900.0])) == 2.5
    assert interquartile_mean(np.array([7.0])) == 7.0
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0])) == 3.5
