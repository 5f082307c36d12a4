"""Reports as a bench gives them, without benching."""

from __future__ import annotations

from vitdeploy.measure.verdict import give_verdict
from vitdeploy.records import Baseline, Conditions, Environment, Report, Row, Timing


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
        "model": "digits-vit",
        "environment": machine,
        "versions": {"onnxruntime": "1.31.1", "torch": "2.15.0", "vitdeploy": "0.1.0"},
        "baseline": baseline,
        "conditions": conditions,
        "rows": found,
        "verdict": give_verdict(found, baseline, conditions),
    }
    return Report(**{**values, **fields})
