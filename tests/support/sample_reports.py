"""Reports as a bench gives them, without benching."""

from __future__ import annotations

from vitdeploy.measure.verdict import give_verdict
from vitdeploy.records import (
    Baseline,
    Conditions,
    DepthPoint,
    Environment,
    ErrorProfile,
    LayerCost,
    LayerProfile,
    Report,
    RoundedTensor,
    Row,
    Timing,
)
from vitdeploy.records.differences import Differences, DifferingImage, ShownPrediction
from vitdeploy.records.layer_profile import Part
from vitdeploy.records.report import ClassCount, Sustained, ThreadTiming, Throughput
from vitdeploy.records.scenario import ScenarioResult


def timing(p50_ms: float, batch: int = 1, scope: str = "end_to_end", **fields: object) -> Timing:
    return Timing(
        batch=batch,
        scope=scope,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.08,
        p99_ms=p50_ms * 1.31,
        mean_ms=p50_ms * 1.03,
        images_per_s=1000 * batch / (p50_ms * 1.03),
        calls=2000,
        **fields,
    )


def rows() -> tuple[Row, ...]:
    engine = {"backend": "tensorrt-rtx", "device": "cuda", "target": "tensorrt", "status": "built", "inspected": False}
    no_gpu = "there is no NVIDIA GPU here, and tensorrt-rtx engines run on nothing else"
    return (
        Row(
            name="digits.safetensors",
            backend="pytorch",
            provider="eager-cpu",
            device="cpu",
            precision="fp32",
            status="ok",
            top1=445 / 450,
            top1_ci95=(0.9743, 0.9952),
            timings=(timing(1.93), timing(4.4, 8)),
            load_ms=31.2,
            first_inference_ms=6.04,
            size_bytes=627_144,
            peak_memory_bytes=412_000_000,
        ),
        Row(
            name="digits.onnx",
            backend="onnxruntime",
            provider="CPUExecutionProvider",
            device="cpu",
            precision="fp32",
            status="ok",
            top1=445 / 450,
            top1_ci95=(0.9743, 0.9952),
            delta_top1_pp=0.0,
            delta_ci95_pp=(-0.85, 0.85),
            agreement=1.0,
            logits_sqnr_db=127.3,
            timings=(
                timing(0.342, speedup=5.64, speedup_ci95=(5.41, 5.83)),
                timing(1.61, 8, speedup=2.73, speedup_ci95=(2.66, 2.79)),
            ),
            load_ms=11.8,
            first_inference_ms=0.71,
            size_bytes=655_872,
            peak_memory_bytes=71_300_000,
        ),
        Row(
            name="digits.int8.onnxruntime.onnx",
            backend="onnxruntime",
            provider="CPUExecutionProvider",
            device="cpu",
            target="onnxruntime",
            precision="int8",
            status="ok",
            top1=444 / 450,
            top1_ci95=(0.9712, 0.9939),
            delta_top1_pp=-100 / 450,
            delta_ci95_pp=(-1.25, 0.64),
            agreement=0.9978,
            logits_sqnr_db=38.4,
            timings=(
                timing(0.289, speedup=6.68, speedup_ci95=(6.39, 6.91)),
                timing(1.42, 8, speedup=3.1, speedup_ci95=(3.02, 3.2)),
            ),
            load_ms=14.9,
            first_inference_ms=0.66,
            size_bytes=211_904,
            peak_memory_bytes=69_900_000,
        ),
        Row(name="digits.fp16.engine", precision="fp16", reason=no_gpu, size_bytes=412_300, **engine),
        Row(
            name="digits.int8.engine",
            precision="int8",
            reason=no_gpu,
            size_bytes=298_100,
            notes=("TensorRT-RTX documents its INT8 as weight-only",),
            **engine,
        ),
        Row(
            name="broken <script>alert(1)</script>|_.onnx",
            backend="onnxruntime",
            device="cpu",
            precision="fp32",
            status="failed",
            reason="onnxruntime cannot open it: no kernel for 'Foo' & \"Bar\"",
        ),
    )


def build(found: tuple[Row, ...], **fields: object) -> Report:
    baseline = Baseline(
        row="digits.safetensors",
        accuracy_against="PyTorch eager FP32 of digits.safetensors",
        latency_against="the baseline on the same device",
        latency_rows={
            row.name: "digits.safetensors" for row in found if row.timings and row.name != "digits.safetensors"
        },
    )
    conditions = Conditions(
        data="digits:test",
        data_sha256="5f" * 32,
        n_samples=450,
        batches=(1, 8),
        threads=0,
        warmup=5,
        rounds=10,
        iterations=20,
        block_s=0.5,
        fill_s=0.1,
        accuracy_batch=32,
    )
    machine = Environment(
        os="Linux-6.1-x86_64", python="3.11.7", cpu="Intel(R) Xeon(R) Processor", cores=2, memory_bytes=25_769_803_776
    )
    values: dict[str, object] = {
        "created": "2026-11-21T01:38:51+00:00",
        "producer": "vitdeploy 0.1.0",
        "key": "ab" * 32,
        "command": "vitdeploy bench digits.onnx 'my model.onnx' --data digits:test --batch 1,8",
        "model": "digits-vit",
        "environment": machine,
        "versions": {"onnxruntime": "1.31.1", "torch": "2.15.0", "vitdeploy": "0.1.0"},
        "baseline": baseline,
        "conditions": conditions,
        "rows": found,
        "verdict": give_verdict(found, baseline, conditions),
    }
    return Report(**{**values, **fields})


def everything() -> Report:
    """Return a report in which no section of the page is missing."""
    parts: tuple[tuple[Part, str, float], ...] = (
        ("embedding", "fp32", 0.01), ("attention", "int8", 0.12), ("mlp", "int8", 0.08), ("norm", "fp32", 0.03),
        ("conversion", "uint8", 0.04), ("layout", "fp32", 0.06),
    )  # fmt: skip
    layers = tuple(
        LayerCost(name=f"blocks.0/{part}", operator="MatMul", precision=precision, part=part, ms=ms, sources=(part,))
        for part, precision, ms in parts
    )
    heat = (51.0, 63.0, 70.0)
    sustained = Sustained(
        batch=1, seconds=30.0, at_s=(10.0, 20.0, 30.0), p50_ms=(0.34, 0.35, 0.39), clock_mhz=(None,) * 3,
        temperature_c=heat, throttled=("hot",), slowdown=1.15,
    )  # fmt: skip
    tensor = RoundedTensor(
        group="blocks.0.attn.qkv", tensor="x", low=-3.0, high=4.0, least=-3.1, most=4.1, clipped=0.001, sqnr_db=38.2
    )
    errors = ErrorProfile(images=16, depth=(DepthPoint(tensor="blocks.0/Add", sqnr_db=41.5),), tensors=(tensor,))
    scenario = ScenarioResult(
        name="server", metric=812.5, percentile_ms=9.1, bound_ms=15.0, queries=9000, samples=9000, samples_per_query=1,
        batch=8, seconds=11.0, needed_queries=662, needed_seconds=600.0, sample_seed=0, by_the_rules=False,
    )  # fmt: skip
    more: dict[str, dict[str, object]] = {
        "digits.onnx": {"layer_profile": LayerProfile(batch=1, calls=40, call_ms=0.5, layers=layers[:4])},
        "digits.int8.onnxruntime.onnx": {
            "layer_profile": LayerProfile(batch=1, calls=40, call_ms=0.6, layers=layers),
            "provider": "CPUExecutionProvider",
            "scenarios": (scenario,),
            "throughput": (Throughput(batch=1, streams=2, scope="device", images_per_s=5120.0, seconds=3.0),),
            "by_threads": tuple(
                ThreadTiming(
                    threads=threads, batch=1, p50_ms=ms, p50_ci95=(0.95 * ms, 1.1 * ms), images_per_s=1000 / ms
                )
                for threads, ms in ((1, 0.9), (2, 0.5), (4, 0.4))
            ),
            "sustained": sustained,
            "error_profile": errors,
            "energy_mj_per_image": 3.2,
        },
    }
    counted = tuple(f"class {number}" for number in range(25))
    found = tuple(
        row.model_copy(
            update={
                **more.get(row.name, {}),
                "correct_by_class": tuple(17 - number % 3 for number in range(25)) if row.top1 is not None else None,
            }
        )
        for row in rows()
    )
    shown = ShownPrediction(row="digits.safetensors", predicted="8", probability=0.45, right=True)
    wrong = ShownPrediction(row="digits.int8.onnxruntime.onnx", predicted="2", probability=0.44, right=False)
    picture = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAA"
    picture += "AABJRU5ErkJggg=="
    image = DifferingImage(
        name="digits/0645", sample_id="cd" * 32, label="8", baseline=shown, others=(wrong,), thumbnail=picture
    )
    report = build(found, differences=Differences(images=1, shown=(image,)))
    classes = tuple(ClassCount(name=name, images=18) for name in counted)
    return report.model_copy(update={"conditions": report.conditions.model_copy(update={"classes": classes})})
