"""``quantize`` from end to end on a transformer that reads digits: what it writes and what it checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from notes import Notes
from quantized import DEPTH, FAST, ONE_THREAD, check, ops
from readout_vit import digits, run, write_readout_vit

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_onnx, write_onnx
from vitdeploy.backends import get_backend
from vitdeploy.benching.candidates import of_artifact
from vitdeploy.errors import GraphError, UsageError
from vitdeploy.graph.legality import count_unsorted
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.preprocess import normalize
from vitdeploy.records import PlanEntry, Precision, PrecisionPlan, Target
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.quantize import QuantizeOptions, QuantizeRequest, quantize

pytestmark = pytest.mark.slow

CPU_TARGETS: tuple[Target, ...] = ("openvino", "onnxruntime")
TARGETS = ("tensorrt", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", DEPTH)


@pytest.fixture(scope="module")
def made(source: OnnxModel, tmp_path_factory: pytest.TempPathFactory):
    """Each precision and target once: (precision, target) → artifact."""
    folder = tmp_path_factory.mktemp("made")
    cases: list[tuple[Any, Any]] = [("int8", target) for target in TARGETS]
    cases += [("fp16", "tensorrt"), ("int8-weight-only", "tensorrt"), ("fp8", "tensorrt")]
    return {
        case: quantize(
            source, folder / f"{case[0]}.{case[1]}.onnx", precision=case[0], target=case[1],
            calibration="digits" if case[0] in ("int8", "fp8") else None, options=ONE_THREAD,
        )
        for case in cases
    }  # fmt: skip


def key_of(source: OnnxModel, **options: Any) -> str:
    return QuantizeRequest.open(source, "unwritten.onnx", **options).key


@pytest.mark.parametrize("target", TARGETS)
def test_int8_keeps_the_accuracy_on_digits_that_it_has_not_seen(source: OnnxModel, made, target: str) -> None:
    """The head is fitted to random features, which magnifies rounding; a trained model has 40 dB (test_pipeline)."""
    images, labels = digits("test")
    before, after = run(source.load(), images), run(made["int8", target].load(), images)
    top1 = [float(np.mean(logits.argmax(axis=1) == labels)) for logits in (before, after)]
    assert top1[0] > 0.93
    assert abs(top1[1] - top1[0]) <= 0.01
    assert logits_sqnr_db(after, before) >= 29


@pytest.mark.parametrize(("precision", "least"), [("fp16", 50), ("int8-weight-only", 27), ("fp8", 15)])
def test_other_precisions_stay_as_close_as_their_bits_allow(
    source: OnnxModel, made, precision: Precision, least: int
) -> None:
    images, _ = digits("test")
    before, after = run(source.load(), images), run(made[precision, "tensorrt"].load(), images)
    assert logits_sqnr_db(after, before) >= least


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_manifest_says_is_what_can_be_measured_again(source: OnnxModel, made, target: str) -> None:
    artifact = made["int8", target]
    claimed = check(artifact, "logits SQNR")
    assert claimed.status == "passed"
    assert claimed.unit == "dB"
    assert "40 images" in claimed.detail
    images, _ = digits("test")
    again = logits_sqnr_db(run(artifact.load(), images), run(source.load(), images))
    assert claimed.value == pytest.approx(again, abs=4)
    assert 0.9 <= check(artifact, "agreement").value <= 1.0


@pytest.mark.parametrize("target", TARGETS)
def test_q_dq_lands_on_four_weights_and_four_activations_per_block_and_for_openvino_on_patches(
    made, target: str
) -> None:
    artifact, patches = made["int8", target], target == "openvino"
    counts = ops(artifact.load())
    assert counts["QuantizeLinear"] == 4 * DEPTH + patches
    assert counts["DequantizeLinear"] == 2 * (4 * DEPTH + patches)
    pairs = [node.inputs[0].producer() for node in artifact.load().graph if node.op_type == "QuantizeLinear"]
    rounded = {"image" if node is None else node.op_type for node in pairs}
    assert rounded == {"LayerNormalization", "Reshape", "Gelu"} | ({"image"} if patches else set())
    readers = [node for node in artifact.load().graph if any(_dequantized(value) for value in node.inputs)]
    assert Counter(node.op_type for node in readers) == {"MatMul": 4 * DEPTH} | ({"Conv": 1} if patches else {})
    for node in readers:
        assert all(_dequantized(value) for value in node.inputs[:2]), "both factors are integers"


def _dequantized(value) -> bool:
    return value is not None and value.producer() is not None and value.producer().op_type == "DequantizeLinear"


def test_weights_only_have_no_activation_pairs(made) -> None:
    counts = ops(made["int8-weight-only", "tensorrt"].load())
    assert counts["QuantizeLinear"] == 0
    assert counts["DequantizeLinear"] == 4 * DEPTH


@pytest.mark.parametrize(("target", "rest"), [("tensorrt", "FLOAT16"), ("onnxruntime", "FLOAT"), ("openvino", "FLOAT")])
def test_the_remainder_is_what_suits_the_target_and_the_outside_stays_float32(made, target: str, rest: str) -> None:
    model = made["int8", target].load()
    for node in model.graph:
        if node.op_type in ("Conv", "Softmax", "LayerNormalization", "Gelu", "Gemm", "DequantizeLinear"):
            dtype = node.outputs[0].dtype or node.inputs[1].const_value.dtype
            assert dtype.name == rest, node.name
    assert [value.dtype.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["FLOAT", "FLOAT"]


def test_every_graph_is_sorted_and_of_the_same_opset_and_zero_points_are_what_its_runtime_takes(
    source: OnnxModel, made
) -> None:
    for (precision, target), artifact in made.items():
        model = artifact.load()
        assert count_unsorted(model.graph) == 0
        assert model.opset_imports[""] == source.load().opset_imports[""] == 20
        pairs = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert bool(pairs) == (precision != "fp16")
        for node in pairs:
            zero = node.inputs[2].const_value
            if target == "tensorrt" or node.inputs[0].is_initializer():
                assert not np.asarray(zero.numpy(), np.float32).any(), "zero point 0"
            elif node.name.startswith("input/"):
                assert zero.dtype == ir.DataType.INT8, "images are signed"
            else:
                assert zero.dtype == ir.DataType.UINT8, "kernels of x86 multiply unsigned activations"


def test_onnxruntime_runs_every_quantized_linear_in_integers(made, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    path = str(made["int8", "onnxruntime"].path)
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    counts = ops(ir.load(tmp_path / "optimized.onnx"))
    assert counts["MatMulIntegerToFloat"] == 4 * DEPTH
    assert counts["DequantizeLinear"] == 0


def test_weights_for_a_cpu_cannot_overflow_16_bits_and_those_for_tensorrt_use_all_8(made) -> None:
    pairs = {}
    for target in ("tensorrt", "onnxruntime"):
        weights = [
            node.inputs[0].const_value.numpy().astype(int)
            for node in made["int8", target].load().graph
            if node.op_type == "DequantizeLinear" and "axis" in node.attributes
        ]
        assert len(weights) == 4 * DEPTH
        pairs[target] = max(
            np.maximum(sign * weight, 0).reshape(-1, 2, weight.shape[1]).sum(axis=1).max()
            for weight in weights
            for sign in (1, -1)
        )
    assert 255 * pairs["onnxruntime"] < 2**15
    assert 255 * pairs["tensorrt"] > 2**15


def test_for_amx_openvino_gets_signed_activations_and_another_processor_says_so(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_integers", lambda: "amx")
    options = replace(FAST, cpu="auto")
    graphs = {
        target: quantize(
            source, tmp_path / f"{target}.onnx", precision="int8", target=target, calibration="digits", options=options
        )
        for target in CPU_TARGETS
    }
    for target, (stored, cpu) in {"openvino": ({"INT8"}, "amx"), "onnxruntime": ({"UINT8"}, "vnni")}.items():
        nodes = [node for node in graphs[target].load().graph if node.op_type == "QuantizeLinear"]
        assert {node.outputs[0].dtype.name for node in nodes if node.outputs[0].dtype is not None} == stored
        plan = graphs[target].manifest.plan
        assert plan is not None
        assert plan.cpu == cpu
    candidate = of_artifact(graphs["openvino"], "openvino", "cpu")
    assert candidate.notes() == ()
    monkeypatch.setattr(environment, "cpu_integers", lambda: "vnni")
    assert "its activations are signed, for CPUs with AMX" in " ".join(candidate.notes())
    monkeypatch.undo()
    asked = quantize(
        source,
        tmp_path / "asked.onnx",
        precision="int8",
        target="openvino",
        calibration="digits",
        options=replace(FAST, cpu="amx"),
    )
    assert check(asked, "logits SQNR").value > 25, "on the processor that is here"


def test_a_bf16_remainder_stands_in_the_plan_and_is_judged_as_openvino_computes_it(
    source: OnnxModel, made: Mapping[tuple[str, str], OnnxModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    options = replace(FAST, remainder="bf16")

    def beside_bf16(name: str) -> OnnxModel:
        return quantize(
            source, tmp_path / name, precision="int8", target="openvino", calibration="digits", options=options
        )

    monkeypatch.setattr("vitdeploy.backends.openvino.computes_bf16", lambda: True)
    found = beside_bf16("bf16.onnx")
    plain = quantize(
        source, tmp_path / "plain.onnx", precision="int8", target="openvino", calibration="digits", options=FAST
    )
    assert found.manifest.plan is not None
    assert found.manifest.plan.remainder == "bf16"
    assert {entry.precision for entry in found.manifest.plan.entries} == {"int8", "bf16"}
    assert found.digest == plain.digest
    assert check(found, "logits SQNR beside BF16").value > 20
    replayed = quantize(
        source,
        tmp_path / "replayed.onnx",
        precision="int8",
        target="openvino",
        calibration="digits",
        options=replace(FAST, plan=found),
    )
    assert replayed.manifest.plan == found.manifest.plan
    monkeypatch.setattr("vitdeploy.backends.openvino.computes_bf16", lambda: False)
    unchecked = check(beside_bf16("unchecked.onnx"), "logits SQNR beside BF16")
    assert (unchecked.status, "neither AVX-512 BF16 nor AMX" in unchecked.detail) == ("unchecked", True)


@pytest.mark.parametrize(("precision", "target"), [("int8", "onnxruntime"), ("int8", "tensorrt"), ("fp16", "openvino")])
def test_a_bf16_remainder_is_for_8_bits_in_openvino(
    source: OnnxModel, tmp_path: Path, precision: Precision, target: Target
) -> None:
    with pytest.raises(UsageError, match="is for 8-bit graphs and target 'openvino'"):
        quantize(
            source,
            tmp_path / "out.onnx",
            precision=precision,
            target=target,
            calibration="digits",
            options=replace(FAST, remainder="bf16"),
        )
    assert not (tmp_path / "out.onnx").exists()


def test_a_group_kept_in_fp32_cannot_stand_beside_bf16(source: OnnxModel, tmp_path: Path) -> None:
    entry = PlanEntry(group="blocks.0.attn.qkv", precision="fp32")
    plan = PrecisionPlan(profile="hand", remainder="bf16", entries=(entry,))
    with pytest.raises(UsageError, match=r"asks for 'fp32' in group .*, beside a remainder of 'bf16'"):
        quantize(
            source,
            tmp_path / "out.onnx",
            precision="int8",
            target="openvino",
            calibration="digits",
            options=replace(FAST, plan=plan),
        )


def test_weights_for_a_cpu_with_vnni_use_all_8_bits_and_the_plan_says_so(
    source: OnnxModel, made: Mapping[tuple[str, str], OnnxModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(FAST, cpu="vnni")
    made_for_all = quantize(
        source, tmp_path / "any.onnx", precision="int8", target="onnxruntime", calibration="digits", options=FAST
    )
    full = quantize(
        source, tmp_path / "vnni.onnx", precision="int8", target="onnxruntime", calibration="digits", options=options
    )
    assert full.manifest.plan is not None
    assert made_for_all.manifest.plan is not None
    assert (full.manifest.plan.cpu, made_for_all.manifest.plan.cpu) == ("vnni", "any")
    assert check(full, "logits SQNR").value > check(made_for_all, "logits SQNR").value
    again = replace(FAST, plan=full)
    replayed = quantize(
        source, tmp_path / "again.onnx", precision="int8", target="onnxruntime", calibration="digits", options=again
    )
    assert replayed.digest == full.digest
    for kind, words in (("vnni", False), ("amx", False), ("any", True), (None, False)):
        monkeypatch.setattr(environment, "cpu_integers", lambda kind=kind: kind)
        notes = of_artifact(full, "onnxruntime", "cpu").notes()
        assert any("its weights are for CPUs with VNNI" in note for note in notes) is words
        assert of_artifact(made_for_all, "onnxruntime", "cpu").notes() == ()
        if kind == "any":  # as the others they are computed where one of them is here
            with get_backend("onnxruntime").open(full, SessionOptions(provider="cpu")) as session:
                assert full.golden is not None
                assert full.manifest.preprocess is not None
                logits = session.run({"input": normalize(full.golden.pixels, full.manifest.preprocess)})["logits"]
            assert logits_sqnr_db(logits, full.golden.outputs) > 60


def test_the_manifest_tells_the_whole_story(source: OnnxModel, made) -> None:
    manifest = made["int8", "tensorrt"].manifest
    assert (manifest.precision, manifest.target, manifest.kind) == ("int8", "tensorrt", "onnx")
    assert manifest.parents["onnx"] == source.digest
    assert set(manifest.parents) == {"onnx", "calibration"}
    assert manifest.model == source.manifest.model
    assert manifest.preprocess == source.manifest.preprocess
    assert manifest.calibration.data == "digits:train"
    assert manifest.calibration.samples == 160
    assert manifest.calibration.held_out == 40
    assert manifest.calibration.set_sha256 == manifest.parents["calibration"]
    assert manifest.calibration.method
    assert manifest.plan.remainder == "fp16"
    assert Counter(entry.precision for entry in manifest.plan.entries)["int8"] == 4 * DEPTH
    assert all(entry.reason for entry in manifest.plan.entries)


def test_golden_samples_get_new_outputs_and_keep_the_reference(source: OnnxModel, made) -> None:
    for case, artifact in made.items():
        golden = read_onnx(artifact.path).golden
        assert np.array_equal(golden.pixels, source.golden.pixels)
        assert np.array_equal(golden.reference, source.golden.reference)
        assert not np.array_equal(golden.outputs, source.golden.outputs), case
        np.testing.assert_allclose(golden.outputs, source.golden.outputs, atol=3)


def test_large_graphs_run_one_after_the_other_and_are_judged_the_same(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=FAST)
    monkeypatch.setattr("vitdeploy.quantization.check.LARGE", 0)
    apart = quantize(source, tmp_path / "b.onnx", precision="int8", calibration="digits", options=FAST)
    assert apart.manifest.checks == together.manifest.checks
    assert apart.golden == together.golden


@pytest.mark.usefixtures("made")
def test_the_source_is_left_as_it_was(source: OnnxModel) -> None:
    assert read_onnx(source.path).digest == source.digest


def test_the_key_can_be_known_before_and_depends_on_everything_that_matters(source: OnnxModel, made) -> None:
    case = {"precision": "int8", "target": "tensorrt", "calibration": "digits", "options": ONE_THREAD}
    key = key_of(source, **case)
    assert key == made["int8", "tensorrt"].manifest.key
    assert key == key_of(source, **{**case, "options": QuantizeOptions(samples=200, threads=2)}), "not on threads"
    others = [
        {**case, "precision": "fp8"},
        {**case, "target": "openvino"},
        {**case, "calibration": "digits:validation"},
        {**case, "options": QuantizeOptions(samples=100)},
        {**case, "options": QuantizeOptions(samples=200, seed=1)},
        {**case, "options": QuantizeOptions(samples=200, method="mse")},
        {**case, "options": QuantizeOptions(samples=200, validation="digits:validation")},
        {**case, "options": QuantizeOptions(samples=200, plan=PrecisionPlan(profile="x", remainder="fp16"))},
    ]
    keys = {key_of(source, **other) for other in others}
    assert len(keys) == len(others)
    assert key not in keys


def test_the_same_call_gives_the_same_graph(source: OnnxModel, made, tmp_path: Path) -> None:
    again = quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=ONE_THREAD)
    assert again.digest == made["int8", "tensorrt"].digest


def test_what_was_tried_is_noted_with_what_it_gave(source: OnnxModel, made, tmp_path: Path) -> None:
    notes = Notes()
    artifact = quantize(
        source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=ONE_THREAD, progress=notes
    )
    (line,) = [line for line in notes.lines if line.startswith("tried on")]
    info = artifact.manifest.calibration
    assert line.startswith(f"tried on {info.compared} images: minmax ")
    assert [trial.step for trial in info.trials][:3] == ["minmax", "ranges of least error", "channel scaling"]
    for trial in info.trials:
        assert f"{trial.step} {trial.sqnr_db:.1f} dB" in line
    assert info.method == " + ".join(trial.step for trial in info.trials if trial.kept)


def test_fast_tries_nothing_on_images(source: OnnxModel, tmp_path: Path) -> None:
    notes, options = Notes(), QuantizeOptions(threads=1, samples=60, effort="fast")
    artifact = quantize(
        source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options, progress=notes
    )
    assert not [line for line in notes.lines if "tried" in line]
    assert artifact.manifest.calibration.trials == ()
    assert artifact.manifest.calibration.samples == 44
    assert check(artifact, "logits SQNR").status == "passed"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_quantized_graph_is_not_quantized_again(made, tmp_path: Path, precision: Precision) -> None:
    for artifact in made.values():
        with pytest.raises(GraphError, match=f"is {artifact.manifest.precision} already"):
            quantize(artifact, tmp_path / "x.onnx", precision=precision, calibration="digits")


def test_q_dq_that_somebody_else_put_in_is_seen(made, source: OnnxModel, tmp_path: Path) -> None:
    foreign = write_onnx(tmp_path / "foreign.onnx", made["int8", "onnxruntime"].load(), source.manifest)
    with pytest.raises(GraphError, match="quantized already, it has QuantizeLinear"):
        quantize(foreign, tmp_path / "x.onnx", precision="int8", calibration="digits")


def test_tensorrt_takes_every_graph_made_for_it(made) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is an extra: pip install 'vitdeploy[tensorrt-rtx]'")
    for (precision, target), artifact in made.items():
        if target != "tensorrt":
            continue
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse(artifact.path.read_bytes())
        assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("input", (1, 1, 8, 8), (2, 1, 8, 8), (4, 1, 8, 8))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        assert builder.build_serialized_network(network, config) is not None, precision
