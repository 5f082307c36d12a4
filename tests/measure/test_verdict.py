from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.measure.verdict import _speed, accuracy_kept, give_verdict, is_faster
from vitdeploy.records import Baseline, Conditions, FloatProduct, OperatorCensus, Row, Timing
from vitdeploy.records.report import ClassCount, SelfCheck

CONDITIONS = Conditions(
    data="digits:test",
    data_sha256="0" * 64,
    n_samples=450,
    batches=(1,),
    threads=0,
    warmup=5,
    rounds=10,
    iterations=20,
)


def _timing(p50_ms: float, speedup: float | None = None, ci=None, batch: int = 1, scope: str = "end_to_end") -> Timing:
    return Timing(
        batch=batch,
        scope=scope,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.1,
        p99_ms=p50_ms * 1.2,
        mean_ms=p50_ms,
        images_per_s=1000 / p50_ms,
        speedup=speedup,
        speedup_ci95=ci,
    )


def _row(name: str, precision: str = "fp32", backend: str = "onnxruntime", device: str = "cpu", **fields: Any) -> Row:
    defaults = {"status": "ok", "top1": 0.98, "delta_top1_pp": 0.0, "delta_ci95_pp": (-0.8, 0.8), "size_bytes": 1000}
    return Row(**{"name": name, "precision": precision, "backend": backend, "device": device, **defaults, **fields})


TORCH = _row(
    "vit.safetensors",
    backend="pytorch",
    delta_top1_pp=None,
    delta_ci95_pp=None,
    size_bytes=4000,
    timings=(_timing(10.0),),
)


def _verdict(
    *rows,
    batches: tuple[int, ...] = (1,),
    row: str | None = "vit.safetensors",
    against: str = "PyTorch eager FP32 of vit.safetensors",
):
    baseline = Baseline(
        row=row,
        accuracy_against=against,
        latency_against="the baseline on the same device",
        latency_rows={one.name: row for one in rows if row is not None and one.name != row},
    )
    return give_verdict(rows, baseline, CONDITIONS.model_copy(update={"batches": batches}))


def test_the_fastest_that_keeps_its_accuracy_is_shipped_and_the_reason_has_both_intervals() -> None:
    said = _verdict(
        TORCH,
        _row("vit.onnx", timings=(_timing(5.0, 2.0, (1.9, 2.1)),)),
        _row("vit.int8.onnx", "int8", timings=(_timing(2.5, 4.0, (3.8, 4.2)),), size_bytes=1_100_000),
    )
    assert said == (
        "On this CPU, ship vit.int8.onnx under ONNX Runtime: 4.00× as fast as the baseline (95 % interval 3.80 to "
        "4.20), 2.50 ms at batch 1; top-1 98.00 %, the same as the baseline (95 % interval −0.80 to +0.80 pp); "
        "1.1 MB instead of 4.0 kB.",
    )


def test_int8_that_loses_accuracy_is_not_shipped_however_fast() -> None:
    said = _verdict(
        TORCH,
        _row("vit.onnx", timings=(_timing(5.0, 2.0, (1.9, 2.1)),)),
        _row(
            "vit.int8.onnx",
            "int8",
            delta_top1_pp=-3.2,
            delta_ci95_pp=(-5.1, -1.4),
            timings=(_timing(2.5, 4.0, (3.8, 4.2)),),
        ),
    )
    assert said[0].startswith("On this CPU, ship vit.onnx ")
    assert "vit.int8.onnx is not recommended: −3.20 pp of top-1 (−5.10 to −1.40)." in said


def test_a_large_loss_on_few_images_is_not_shipped_and_not_called_proven() -> None:
    few = _row(
        "vit.int8.onnx", "int8", delta_top1_pp=-3.0, delta_ci95_pp=(-9.0, 3.0), timings=(_timing(2.0, 5, (4, 6)),)
    )
    said = _verdict(TORCH, few)
    assert said[0].startswith("On this CPU, only the baseline vit.safetensors keeps the accuracy")
    assert any("although so few images do not prove it" in text for text in said)


def test_a_small_but_real_loss_is_shipped_and_said() -> None:
    said = _verdict(
        TORCH,
        _row(
            "q.onnx", "int8", delta_top1_pp=-0.7, delta_ci95_pp=(-1.2, -0.2), timings=(_timing(2.5, 4.0, (3.8, 4.2)),)
        ),
    )
    assert said[0].startswith("On this CPU, ship q.onnx")
    assert said[0].endswith("the loss is small but real.")


def test_int8_slower_than_fp16_is_said_and_fp16_is_shipped() -> None:
    said = _verdict(
        _row("vit.pt", backend="pytorch", device="cuda", timings=(_timing(8.0),)),
        _row(
            "vit.fp16.engine", "fp16", "tensorrt", "cuda", timings=(_timing(1.0, 8.0, (7.8, 8.2)),), target="tensorrt"
        ),
        _row(
            "vit.int8.engine", "int8", "tensorrt", "cuda", timings=(_timing(1.3, 6.2, (6.0, 6.4)),), target="tensorrt"
        ),
        row="vit.pt",
    )
    assert said[0].startswith("On this GPU, ship vit.fp16.engine under TensorRT: 8.00×")
    assert said[1] == (
        "INT8 under TensorRT is slower than FP16 (1.30 ms against 1.00 ms at batch 1). On transformers it often is: "
        "every border between INT8 and FP16 costs time, and small matrix products save little. Take FP16 unless size "
        "matters most."
    )


def test_int8_that_is_only_as_fast_is_not_preferred() -> None:
    said = _verdict(
        TORCH,
        _row("vit.onnx", timings=(_timing(2.55, 3.9, (3.7, 4.1)),)),
        _row("vit.int8.onnx", "int8", timings=(_timing(2.6, 3.8, (3.6, 4.0)),), size_bytes=300),
    )
    assert said[0].startswith("On this CPU, ship vit.onnx")
    assert (
        said[1] == "INT8 under ONNX Runtime is not measurably faster than FP32 at batch 1: what it saves there is size."
    )


@pytest.mark.parametrize(
    ("fields", "shipped"),
    [
        ({}, "vit.int8.onnx"),  # smaller, as accurate and with the smaller median: the other has nothing for it
        ({"top1": 0.979, "delta_top1_pp": -0.1}, "vit.fp16.onnx"),
        ({"size_bytes": 700}, "vit.fp16.onnx"),
        ({"timings": (_timing(2.6, 3.8, (3.6, 4.0)),)}, "vit.fp16.onnx"),
    ],
)
def test_what_another_beats_in_every_respect_is_not_shipped(fields: dict[str, Any], shipped: str) -> None:
    int8: dict[str, Any] = {"timings": (_timing(2.5, 4.0, (3.8, 4.2)),), "size_bytes": 300, **fields}
    sentences = _verdict(
        TORCH,
        _row("vit.fp16.onnx", "fp16", timings=(_timing(2.55, 3.9, (3.7, 4.1)),), size_bytes=600),
        _row("vit.int8.onnx", "int8", **int8),
    )
    assert sentences[0].startswith(f"On this CPU, ship {shipped}")


def test_of_two_that_are_as_fast_in_floating_point_the_smaller_is_shipped() -> None:
    said = _verdict(
        TORCH,
        _row("big.onnx", timings=(_timing(2.5, 4.0, (3.8, 4.2)),), size_bytes=900),
        _row("small.onnx", "fp16", timings=(_timing(2.55, 3.9, (3.7, 4.1)),), size_bytes=450),
    )
    assert said[0].startswith("On this CPU, ship small.onnx")


def test_an_interval_that_says_nothing_makes_no_tie_and_is_said() -> None:
    said = _verdict(
        TORCH,
        _row("fast.onnx", timings=(_timing(0.75, 19.0, (15.0, 560.0)),), size_bytes=900),
        _row("slow.onnx", timings=(_timing(17.6, 0.8, (0.18, 260.0)),), size_bytes=450),
    )
    assert said[0].startswith("On this CPU, ship fast.onnx")
    assert said[1] == (
        "On this CPU, the intervals at batch 1 are too wide to say whether fast.onnx (0.750 ms) is faster than "
        "slow.onnx (17.6 ms): bench again on an idle machine, with more rounds."
    )


@pytest.mark.parametrize(
    ("interval", "shown"), [((0.9, 2.5), False), ((1.0, 2.5), False), ((1.1, 2.5), True), (None, True)]
)
def test_what_is_not_shown_to_be_faster_than_the_baseline_is_said(
    interval: tuple[float, float] | None, shown: bool
) -> None:
    said = _verdict(TORCH, _row("vit.onnx", timings=(_timing(6.0, 1.7, interval),)))
    assert said[0].startswith("On this CPU, ship vit.onnx") is shown
    assert (" is first, but not shown to be faster than the baseline: " in said[0]) is not shown
    assert any("too wide to say" in text for text in said) is not shown


def test_when_nothing_is_faster_the_baseline_is_kept() -> None:
    said = _verdict(TORCH, _row("vit.onnx", timings=(_timing(12.0, 0.83, (0.8, 0.86)),)))
    assert said[0] == (
        "On this CPU, keep the baseline vit.safetensors under PyTorch at batch 1: nothing that keeps its accuracy is "
        "faster (10.0 ms)."
    )


def test_of_one_artifact_nothing_is_recommended() -> None:
    said = _verdict(TORCH)
    assert said[0] == "On this CPU, nothing but vit.safetensors was measured at batch 1 (10.0 ms)."


def test_each_device_gets_its_own_recommendation() -> None:
    said = _verdict(
        TORCH,
        _row("vit.onnx", timings=(_timing(5.0, 2.0, (1.9, 2.1)),)),
        _row("vit.engine", "fp16", "tensorrt", "cuda", timings=(_timing(0.5),), target="tensorrt"),
    )
    assert said[0].startswith("On this CPU, ship vit.onnx")
    assert said[1].startswith("On this GPU, ship vit.engine")


def test_another_winner_at_another_batch_is_said() -> None:
    small_first = _row("a.onnx", timings=(_timing(2.0, 5.0, (4.9, 5.1)), _timing(30.0, 2.0, (1.9, 2.1), batch=8)))
    large_first = _row("b.onnx", timings=(_timing(4.0, 2.5, (2.4, 2.6)), _timing(15.0, 4.0, (3.9, 4.1), batch=8)))
    torch = TORCH.model_copy(update={"timings": (_timing(10.0), _timing(60.0, batch=8))})
    said = _verdict(torch, small_first, large_first, batches=(1, 8))
    assert said[0].startswith("On this CPU, ship a.onnx")
    assert said[1].startswith("On this CPU, ship b.onnx")
    assert "at batch 8" in said[1]
    same = _verdict(torch, small_first, batches=(1, 8))
    assert (
        same[1]
        == "At batch 8 it is a.onnx as well (2.00× as fast as the baseline (95 % interval 1.90 to 2.10), 30.0 ms)."
    )


def test_a_graph_of_another_target_is_not_shipped() -> None:
    said = _verdict(
        TORCH,
        _row("trt.onnx", "int8", target="tensorrt", timings=(_timing(1.0, 10.0, (9.0, 11.0)),)),
        _row("ort.onnx", "int8", target="onnxruntime", timings=(_timing(5.0, 2.0, (1.9, 2.1)),)),
    )
    assert said[0].startswith("On this CPU, ship ort.onnx")
    assert not any("trt.onnx" in text for text in said)


def test_engines_that_were_only_built_are_named_with_the_reason_and_rtx_int8_points_to_fp16() -> None:
    engine = {"status": "built", "reason": "there is no NVIDIA GPU here", "top1": None, "delta_top1_pp": None}
    said = _verdict(
        TORCH,
        _row("vit.fp16.engine", "fp16", "tensorrt-rtx", "cuda", **engine),
        _row("vit.int8.engine", "int8", "tensorrt-rtx", "cuda", **{**engine, "size_bytes": 600}),
    )
    assert said[1] == (
        "vit.fp16.engine and vit.int8.engine were built and not run, so neither speed nor accuracy is known: there is "
        "no NVIDIA GPU here. Bench them on the device."
    )
    assert said[2] == (
        "TensorRT-RTX documents its INT8 as weight-only (vit.int8.engine): smaller weights, not faster arithmetic. For "
        "speed take vit.fp16.engine (FP16), or FP8 on compute capability 8.9 and newer."
    )


def test_when_nothing_ran_nothing_is_recommended() -> None:
    said = _verdict(_row("e.engine", "fp16", "tensorrt-rtx", "cuda", status="built", reason="no GPU"), row=None)
    assert said[0] == "Nothing could be run on this machine, so nothing is recommended from measurements."


def test_failures_are_named() -> None:
    said = _verdict(TORCH, _row("bad.onnx", status="failed", reason="it has no kernel for Foo."))
    assert "bad.onnx failed: it has no kernel for Foo." in said


def test_without_labels_agreement_decides_and_the_caveat_is_said() -> None:
    blind: dict[str, Any] = {"top1": None, "delta_top1_pp": None, "delta_ci95_pp": None}
    torch = TORCH.model_copy(update=blind)
    fast = _row("q.onnx", "int8", agreement=0.93, timings=(_timing(1.0, 10.0, (9.0, 11.0)),), **blind)
    good = _row("g.onnx", agreement=0.998, timings=(_timing(5.0, 2.0, (1.9, 2.1)),), **blind)
    said = _verdict(torch, fast, good)
    assert said[0].startswith("On this CPU, ship g.onnx")
    assert "it agrees with the baseline on 99.8 % of the images" in said[0]
    assert "q.onnx is not recommended: it agrees with the baseline on only 93.0 % of the images." in said
    assert said[-1] == "The data has no labels: fidelity to the baseline is known, accuracy is not."


@pytest.mark.parametrize("sqnr", [3.0, 38.4, None])
def test_of_models_without_a_single_class_nothing_is_recommended_whatever_the_fidelity(sqnr: float | None) -> None:
    many: dict[str, Any] = {"top1": None, "delta_top1_pp": None, "delta_ci95_pp": None}
    torch = TORCH.model_copy(update=many)
    identical = sqnr is None
    fast = _row(
        "q.onnx", logits_sqnr_db=sqnr, logits_identical=identical, timings=(_timing(1.0, 10.0, (9.0, 11.0)),), **many
    )
    baseline = Baseline(row="vit.safetensors", accuracy_against="PyTorch eager FP32 of it", latency_against="it")
    said = give_verdict((torch, fast), baseline, CONDITIONS.model_copy(update={"chance": 0.25}))
    shown = "exact" if identical else f"{sqnr} dB"
    assert said[0].startswith(
        "On this CPU, nothing is recommended at batch 1: only the fidelity of the outputs is known"
    )
    assert f"q.onnx {shown} (10.00× as fast" in said[0]
    assert not any("ship" in text or "no labels" in text for text in said)


def test_a_baseline_that_is_not_pytorch_is_said() -> None:
    said = _verdict(_row("vit.onnx", timings=(_timing(5.0),)), row="vit.onnx", against="the FP32 graph, not PyTorch")
    assert "Differences in accuracy are against the FP32 graph, not PyTorch." in said


@pytest.mark.parametrize(
    ("delta", "ci", "kept"),
    [
        (0.4, (0.1, 0.8), "kept"),
        (-0.4, (-0.9, 0.1), "kept"),
        (-0.9, (-1.4, -0.4), "small loss"),
        (-1.1, (-1.4, -0.8), "loss"),
        (-1.1, (-9.0, 7.0), "loss"),
    ],
)
def test_what_counts_as_kept(delta: float, ci: tuple[float, float], kept: str) -> None:
    baseline = Baseline(row="b", accuracy_against="", latency_against=None)
    assert accuracy_kept(_row("a", delta_top1_pp=delta, delta_ci95_pp=ci), baseline) == kept


def test_speedups_against_different_rows_are_not_compared() -> None:
    a = _row("a", timings=(_timing(1.0, 1.1, (1.0, 1.2)),))
    b = _row("b", timings=(_timing(5.0, 9.0, (8.0, 10.0)),))
    apart = Baseline(row=None, accuracy_against="", latency_against=None, latency_rows={"a": "x", "b": "y"})
    together = Baseline(row=None, accuracy_against="", latency_against=None, latency_rows={"a": "x", "b": "x"})
    assert is_faster(a, b, 1, apart) is True  # 1 ms against 5 ms, whatever each gained over its own
    assert is_faster(a, b, 1, together) is False
    near = _row("a", timings=(_timing(4.9),))
    assert is_faster(near, b, 1, apart) is None
    assert is_faster(a, b, 8, apart) is None


def test_int8_engines_that_are_not_even_smaller_are_not_called_smaller() -> None:
    engine = {"status": "built", "reason": "no GPU", "top1": None, "delta_top1_pp": None}
    said = _verdict(
        TORCH,
        _row("a.engine", "fp16", "tensorrt-rtx", "cuda", **{**engine, "size_bytes": 2_000_000}),
        _row("b.engine", "int8", "tensorrt-rtx", "cuda", **{**engine, "size_bytes": 3_200_000}),
    )
    assert "smaller weights at best (here 3.2 MB against 2.0 MB), not faster arithmetic" in said[2]


def test_a_machine_that_was_busy_with_other_work_is_said() -> None:
    baseline = Baseline(row="vit.safetensors", accuracy_against="PyTorch eager FP32", latency_against=None)
    busy = CONDITIONS.model_copy(update={"other_load_cores": 1.7})
    said = (
        "Other processes kept 1.7 cores busy while times were taken: bench again on an idle machine before you rely on "
        "them."
    )
    assert said in give_verdict([TORCH], baseline, busy)
    calm = CONDITIONS.model_copy(update={"other_load_cores": 0.03})
    assert said not in give_verdict([TORCH], baseline, calm)


def test_the_baseline_of_a_second_device_is_one_too() -> None:
    """It has no differences, as it is what the others on its device differ from."""
    blank: dict[str, Any] = {"delta_top1_pp": None, "delta_ci95_pp": None}
    cpu, gpu = TORCH, _row("vit (CUDA)", backend="pytorch", device="cuda", timings=(_timing(6.0),), **blank)
    slow = _row("slow.onnx", device="cuda", timings=(_timing(9.0, 0.67, (0.6, 0.7)),))
    fast = _row("fast.engine", "fp16", "tensorrt", "cuda", timings=(_timing(1.0, 6.0, (5.8, 6.2)),), size_bytes=500)
    baseline = Baseline(
        row=cpu.name,
        accuracy_against="PyTorch eager FP32",
        latency_against="",
        latency_rows={"slow.onnx": gpu.name, "fast.engine": gpu.name},
    )
    assert accuracy_kept(gpu, baseline) == "kept"
    assert give_verdict([cpu, gpu, slow], baseline, CONDITIONS)[1].startswith(
        "On this GPU, keep the baseline vit (CUDA)"
    )
    assert give_verdict([cpu, gpu, fast], baseline, CONDITIONS)[1].endswith("500 B instead of 1.0 kB.")


def test_a_graph_made_for_another_runtime_is_not_said_to_lose_accuracy() -> None:
    off = _row(
        "vit.int8.onnx",
        "int8",
        target="tensorrt",
        delta_top1_pp=0.0,
        delta_ci95_pp=(-0.9, 0.9),
        timings=(_timing(20.0, 0.6, (0.5, 0.7)),),
    )
    said = _verdict(TORCH, off)
    assert said[0].startswith("On this CPU, keep the baseline vit.safetensors")
    assert "vit.int8.onnx was made for another runtime and not considered here" in said[0]


def _verdict_under(conditions, *rows):
    baseline = Baseline(row="vit.safetensors", accuracy_against="PyTorch eager FP32", latency_against="the baseline")
    return give_verdict(rows, baseline, CONDITIONS.model_copy(update=conditions))


@pytest.mark.parametrize("interval", [(0.08, 0.13), (0.10, 0.16), (0.0, 0.05)])
def test_models_at_chance_are_never_shipped(interval: tuple[float, float]) -> None:
    top1 = sum(interval) / 2
    torch = TORCH.model_copy(update={"top1": top1, "top1_ci95": interval})
    fast = _row("vit.onnx", top1=top1, top1_ci95=interval, timings=(_timing(1.0, 10.0, (9.0, 11.0)),))
    said = _verdict_under({"chance": 0.1}, torch, fast)
    assert said[0].startswith(
        "Ship none of these: no model is shown to be better than chance on the 450 images (the best top-1 is "
    )
    assert not any(", ship " in sentence or "keep the baseline" in sentence for sentence in said)


def test_a_candidate_at_chance_is_named_and_the_baseline_stays() -> None:
    torch = TORCH.model_copy(update={"top1_ci95": (0.96, 0.99)})
    lost = _row(
        "vit.int8.onnx", "int8", top1=0.1, top1_ci95=(0.07, 0.13), delta_top1_pp=-88.0, delta_ci95_pp=(-91.0, -85.0)
    )
    said = _verdict_under(
        {"chance": 0.1}, torch, lost.model_copy(update={"timings": (_timing(1.0, 10.0, (9.0, 11.0)),)})
    )
    assert said[0] == "vit.int8.onnx is not shown to be better than chance (10.00 %)."
    assert "only the baseline vit.safetensors keeps the accuracy" in said[1]


def test_the_most_frequent_class_is_what_chance_is_measured_against() -> None:
    torch = TORCH.model_copy(update={"top1": 0.9, "top1_ci95": (0.87, 0.93)})
    assert _verdict_under({"chance": 0.9}, torch)[0].startswith("Ship none of these")
    assert not _verdict_under({"chance": 0.8}, torch)[0].startswith("Ship none of these")
    assert not _verdict_under({"chance": None}, torch)[0].startswith("Ship none of these")


@pytest.mark.parametrize(("images", "drop"), [(60, "5.00"), (150, "2.00"), (299, "1.00"), (300, None), (10_000, None)])
def test_a_small_test_set_is_named_with_what_it_cannot_show(images: int, drop: str | None) -> None:
    said = _verdict_under({"n_samples": images}, TORCH, _row("vit.onnx", timings=(_timing(5.0, 2.0, (1.9, 2.1)),)))
    warned = [sentence for sentence in said if sentence.startswith("The test set is small")]
    assert len(warned) == (drop is not None)
    assert all(f"with {images} images a drop of {drop} pp can go unseen" in sentence for sentence in warned)


@pytest.mark.parametrize(
    ("drift", "interval", "said"),
    [
        (1.4, (9.5, 10.5), True),
        (0.7, (9.5, 10.5), True),
        (1.04, (9.5, 10.5), False),
        (1.4, (5.0, 15.0), False),
        (1.02, (9.99, 10.01), False),
    ],
)
def test_a_drift_beyond_the_interval_is_said(drift: float, interval: tuple[float, float], said: bool) -> None:
    timing = _timing(10.0).model_copy(update={"drift": drift, "p50_ci95": interval})
    text = " ".join(_verdict(TORCH.model_copy(update={"timings": (timing,)})))
    assert ("drifted over the run" in text) == said
    assert (f"vit.safetensors at batch 1 ({drift:.2f}×)" in text) == said


def test_a_row_is_named_once_at_a_batch_by_its_largest_drift() -> None:
    steady = {"p50_ci95": (9.9, 10.1)}
    timings = tuple(
        _timing(10.0, batch=batch).model_copy(update={**steady, "drift": drift, "scope": scope})
        for batch, scope, drift in (
            (1, "end_to_end", 1.2), (1, "compute", 1.3), (8, "end_to_end", 0.7), (8, "compute", 0.8),
        )
    )  # fmt: skip
    (said,) = (line for line in _verdict(TORCH.model_copy(update={"timings": timings})) if "drifted" in line)
    assert ": vit.safetensors at batch 1 (1.30×) and vit.safetensors at batch 8 (0.70×). Speed-ups" in said


@pytest.mark.parametrize(
    ("speedup", "interval", "said"),
    [
        (0.5, (0.4, 0.8), "2.00× the time of the baseline (95 % interval 1.25 to 2.50), 20.0 ms"),
        (0.5, None, "2.00× the time of the baseline, 20.0 ms"),
        (2.0, (1.9, 2.1), "2.00× as fast as the baseline (95 % interval 1.90 to 2.10), 20.0 ms"),
    ],
)
def test_what_is_slower_is_said_by_its_time(speedup: float, interval: tuple[float, float] | None, said: str) -> None:
    assert _speed(_row("vit.onnx", timings=(_timing(20.0, speedup, interval),)), 1) == said


def _checked(check: SelfCheck | None, row: Row) -> str:
    baseline = Baseline(row=row.name, accuracy_against="PyTorch eager FP32", latency_against=None)
    return " ".join(give_verdict([row], baseline, CONDITIONS.model_copy(update={"self_check": check})))


def test_a_self_check_that_fails_is_said_and_one_that_holds_is_not() -> None:
    apart = SelfCheck(row="vit.safetensors", batch=1, ratio=1.3, ratio_ci95=(1.2, 1.4))
    assert "vit.safetensors was timed twice in this run and differs from itself" in _checked(apart, TORCH)
    assert "differs from itself" not in _checked(apart.model_copy(update={"ratio_ci95": (0.9, 1.4)}), TORCH)
    slowed = _timing(10.0).model_copy(update={"alone_ratio": 1.5, "alone_ci95": (1.4, 1.6)})
    assert "as long in turns as alone at batch 1" in _checked(None, TORCH.model_copy(update={"timings": (slowed,)}))
    same = slowed.model_copy(update={"alone_ci95": (0.99, 1.6)})
    assert "as long in turns as alone" not in _checked(None, TORCH.model_copy(update={"timings": (same,)}))


@pytest.mark.parametrize(("planned", "so"), [(9, ", so its time is not that of INT8"), (12, "")])
def test_products_that_run_in_floats_are_named_with_the_reason(planned: int, so: str) -> None:
    one = FloatProduct(node="blocks.0.attn.q/MatMul", kernel="MatMul fp32", reason="its activation is signed")
    census = OperatorCensus(
        runtime="onnxruntime", version="1.32", planned=planned, integer=planned - 1, floating=(one,)
    )
    whole = census.model_copy(update={"integer": planned, "floating": ()})
    row = _row("vit.int8.onnx", "int8", timings=(_timing(5.0, 2.0, (1.9, 2.1)),), census=census)
    assert (
        f"ONNX Runtime computes 1 of the {planned} 8-bit products of vit.int8.onnx in floating point{so}: first "
        "blocks.0.attn.q/MatMul, as MatMul fp32 (its activation is signed)."
    ) in _verdict(TORCH, row)
    assert not any("floating point" in line for line in _verdict(TORCH, row.model_copy(update={"census": whole})))


@pytest.mark.parametrize(
    ("images", "right", "listed"),
    [
        ((20, 17, 20), ((19, 0, 18), (18, 0, 18)), "sky (0 of 17)"),
        ((20, 17, 9), ((19, 0, 0), (18, 0, 0)), "sky (0 of 17) and a\nb (0 of 9)"),
        ((20, 17, 20), ((19, 0, 18), (18, 1, 18)), None),  # one of the models knows it
        ((20, 4, 20), ((19, 0, 18), (18, 0, 18)), None),  # too few to say
    ],
)
def test_classes_that_no_model_recognises_are_named(
    images: tuple[int, ...], right: tuple[tuple[int, ...], ...], listed: str | None
) -> None:
    classes = tuple(ClassCount(name=name, images=n) for name, n in zip(("cat", "sky", "a\nb"), images, strict=True))
    fast = _row("vit.onnx", timings=(_timing(5.0, 2.0, (1.9, 2.1)),))
    rows = [
        one.model_copy(update={"correct_by_class": counts}) for one, counts in zip((TORCH, fast), right, strict=True)
    ]
    said = _verdict_under({"classes": classes}, *rows)
    found = [line for line in said if "trained on" in line]
    expected = None if listed is None else listed.replace("\n", "\\n")
    assert found == (
        []
        if expected is None
        else [f"No row has one image of {expected} right: are these the classes that the model was trained on?"]
    )


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1), (1, 1)])
def test_int8_is_compared_with_fp32_of_the_same_model_alone(numbers: tuple[int, int]) -> None:
    sentences = _verdict(
        TORCH,
        _row("deit.onnx", timings=(_timing(0.86, 11.6, (11, 12)),), model_number=numbers[0]),
        _row("swin.int8.onnx", "int8", timings=(_timing(31.6, 0.3, (0.2, 0.4)),), model_number=numbers[1]),
    )
    one_model = numbers[0] == numbers[1]
    assert any("INT8 under ONNX Runtime is slower than FP32" in text for text in sentences) == one_model
    assert any(text.startswith("The rows are 2 different models: ") for text in sentences) != one_model
