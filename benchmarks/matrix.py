"""One catalogue variant of every family, at full size, through every stage: export, FP16, INT8, three engines.

    python benchmarks/matrix.py                # all of them, about half an hour on 2 cores
    python benchmarks/matrix.py swin swin_v2   # these, the other rows stay

Weights are redrawn, because with a family's own initialisation a wrong tensor often moves no logit. Results go to
``benchmarks/results/matrix.json``, and ``docs/support-matrix.md`` is rendered from it. Ends with 1 where a family does
not get through a stage; the table is written all the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image
from support_tables import FAMILIES, MATRIX_RESULTS, misses_of_stages, read_results, render_all, write_results

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, write_checkpoint
from vitdeploy.backends import get_backend
from vitdeploy.datasets.check_images import smooth_random_pixels
from vitdeploy.errors import VitdeployError
from vitdeploy.graph.legality import findings
from vitdeploy.measure.load import watch_other_load
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records import Manifest
from vitdeploy.sessions import BuildTarget
from vitdeploy.sources.load import load_source
from vitdeploy.stages.build import build
from vitdeploy.stages.export import export
from vitdeploy.stages.quantize import quantize

VARIANTS = {
    "vit": "vit_tiny_patch16_224",
    "deit": "deit_tiny_distilled_patch16_224",
    "hybrid": "vit_tiny_r_s16_p8_224",
    "t2t": "t2t_vit_7",
    "tnt": "tnt_s_patch16_224",
    "pvt": "pvt_tiny",
    "pvt_v2": "pvt_v2_b0",
    "swin": "swin_tiny_patch4_window7_224",
    "swin_v2": "swinv2_tiny_patch4_window8_256",
    "patchconvnet": "patchconvnet_s60",
}
CALIBRATED, CHECKED = 32, 8
CALIBRATION = (
    f"Calibrated on {CALIBRATED} made images (plane waves and noise) by min-max without equalization, "
    f"judged on {CHECKED} others."
)
TARGET = BuildTarget(batch=(1, 2, 5), compute_capabilities=("8.9",))
BUILDER = "tensorrt-rtx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="family", help=f"some of {', '.join(FAMILIES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in FAMILIES]
    if unknown:
        parser.error(f"there is no family {unknown[0]!r}, expected some of {', '.join(FAMILIES)}")
    failed = [name for name in FAMILIES if name in (arguments.names or FAMILIES) and not report_variant(name)]
    render_all()
    sys.exit(1 if failed else 0)


def report_variant(family: str) -> bool:
    """Measure one variant, add its row to the results at once, and return whether it got through every stage."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = measure_variant(family, VARIANTS[family], Path(folder))
    rows = {entry["family"]: entry for entry in read_results(MATRIX_RESULTS).get("rows", [])} | {family: row}
    ordered = [rows[name] for name in FAMILIES if name in rows]
    write_results(MATRIX_RESULTS, {"calibration": CALIBRATION, "rows": ordered})
    misses = misses_of_stages(row)
    print(f"{family:13} {time.monotonic() - start:4.0f} s: {'; '.join(misses) or 'every stage passed'}", flush=True)
    return not misses


def measure_variant(family: str, name: str, folder: Path) -> dict[str, Any]:
    """Take one variant through every stage, and return its row; a stage that failed has the reason."""
    with watch_other_load() as load:
        parameters = redrawn_checkpoint(name, folder / "model.safetensors")
        row: dict[str, Any] = {"family": family, "model": name, "parameters": parameters, "engines": {}}
        model: OnnxModel | None = None
        try:
            start = time.monotonic()
            model = export(folder / "model.safetensors", folder / "fp32.onnx")
            row["export"] = export_row(model, time.monotonic() - start)
        except VitdeployError as error:
            row["export"] = {"error": str(error)}
        graphs = {"fp32": model, **{name: quantized(model, name, folder, row) for name in ("fp16", "int8")}}
        for precision, graph in graphs.items():
            row["engines"][precision] = engine_row(graph, folder / f"{precision}.engine")
    row["conditions"] = {
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "environment": environment.current().model_dump(mode="json", exclude_none=True),
        "versions": environment.versions(),
        "other_load_cores": load.cores,
    }
    return row


def redrawn_checkpoint(name: str, path: Path) -> int:
    """Write a checkpoint of a variant whose every parameter is redrawn, and return how many numbers those are."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
    from redrawing import redraw

    loaded = load_source(name, random_weights=True)
    redraw(loaded.module)
    tensors = {key: tensor.detach().numpy() for key, tensor in loaded.module.state_dict().items()}
    write_checkpoint(path, tensors, Manifest(kind="checkpoint", model=loaded.spec, preprocess=loaded.preprocess))
    return sum(parameter.numel() for parameter in loaded.module.parameters())


def export_row(model: OnnxModel, seconds: float) -> dict[str, Any]:
    """Return what export found when it compared the graph with PyTorch."""
    against = [check for check in model.manifest.checks if "batch" in check.name]
    graph = model.load()
    return {
        "s": seconds,
        "nodes": len(graph.graph),
        "operators": dict(sorted(Counter(node.op_type for node in graph.graph).items())),
        "findings": [str(finding) for finding in findings(graph)],
        "delta": {check.name.rpartition(" ")[2]: check.value for check in against},
    }


def quantized(model: OnnxModel | None, precision: str, folder: Path, row: dict[str, Any]) -> OnnxModel | None:
    """Quantize for TensorRT, put what was found into the row, and return the graph; None where there is none."""
    if model is None:
        row[precision] = {"error": "there was no graph to quantize"}
        return None
    assert model.manifest.preprocess is not None
    spec = model.manifest.preprocess
    calibration = made_images(folder / "calibration", CALIBRATED, 1, spec)
    checked = made_images(folder / "check", CHECKED, 2, spec)
    options = QuantizeOptions(method="minmax", equalization="off", validation=checked)
    start = time.monotonic()
    try:
        graph = quantize(
            model,
            folder / f"{precision}.onnx",
            precision=precision,  # type: ignore[arg-type]
            calibration=calibration if precision == "int8" else None,
            options=options,
        )
    except VitdeployError as error:
        row[precision] = {"error": str(error)}
        return None
    check = next(check for check in graph.manifest.checks if "SQNR" in check.name)
    row[precision] = {"sqnr_db": check.value, "s": time.monotonic() - start, "size_bytes": graph.path.stat().st_size}
    return graph


def made_images(folder: Path, count: int, seed: int, spec: Any) -> str:
    """Write seeded images at the model's input size, once, and return the folder."""
    if not folder.exists():
        folder.mkdir()
        for index, pixels in enumerate(smooth_random_pixels(spec, count, seed)):
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return str(folder)


def engine_row(graph: OnnxModel | None, path: Path) -> dict[str, Any]:
    """Build an engine, and return seconds and size, and whether this machine executed it."""
    if graph is None:
        return {"error": "there was no graph to build from"}
    start = time.monotonic()
    try:
        engine = build(graph, path, backend=BUILDER, target=TARGET)
    except VitdeployError as error:
        return {"error": str(error)}
    seconds = time.monotonic() - start
    executed = any(check.status == "passed" and "golden" in check.name for check in engine.manifest.checks)
    reason = "" if executed else get_backend(BUILDER).can_run() or "its golden samples were not checked"
    size = engine.path.stat().st_size
    return {"build_s": seconds, "size_bytes": size, "executed": executed, "reason": reason}


if __name__ == "__main__":
    main()
