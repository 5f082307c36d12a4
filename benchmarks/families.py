"""Every family in a small variant, trained on the digits and taken through the whole pipeline.

    python benchmarks/families.py                 # all of them, about 20 minutes on 2 cores
    python benchmarks/families.py swin swin_v2    # these, the other rows stay

The recipes are those of ``vitdeploy/recipes/families``. Nothing is taken from an earlier run: each folder is emptied
first, so that the seconds are those of a whole training. Then the graphs that the engines were built from are executed
by ONNX Runtime on the test split as well, because the engines themselves may have no GPU here. Results go to
``benchmarks/results/families.json``, and ``docs/support-matrix.md`` is rendered from it.

Ends with 1 where a family misses what is expected of it; the table is written all the same.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from support_tables import FAMILY_RESULTS, TRAINED, misses_of_family, read_results, render_all, write_results

from vitdeploy import environment
from vitdeploy.artifacts import read_checkpoint, read_onnx
from vitdeploy.benching.options import BenchOptions
from vitdeploy.errors import VitdeployError
from vitdeploy.pipeline import read_recipe, run
from vitdeploy.records import Report, Row
from vitdeploy.stages.bench import bench

FOLDER = Path("build/families")
RECIPES = Path(__file__).resolve().parent.parent / "vitdeploy" / "recipes" / "families"
TEACHER_OF = {"deit": "vit"}
NO_TIMES = {"bench.options.rounds": 1, "bench.options.iterations": 5, "bench.options.processes": False}
"""What this page says of latency is nothing, so the pipeline's own bench is kept short."""
ACCURACY_ONLY = BenchOptions(rounds=1, warmup=1, iterations=1, block_s=0.01, fill_s=0.0, processes=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="family", help=f"some of {', '.join(TRAINED)}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the runs are kept (default: %(default)s)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in TRAINED]
    if unknown:
        parser.error(f"there is no family {unknown[0]!r}, expected some of {', '.join(TRAINED)}")
    names = [name for name in TRAINED if not arguments.names or name in arguments.names]
    failed = [name for name in names if not report_family(name, arguments.folder)]
    render_all()
    sys.exit(1 if failed else 0)


def report_family(name: str, folder: Path) -> bool:
    """Measure one family, add its row to the results at once, and return whether it is as expected."""
    start = time.monotonic()
    try:
        row = measure_family(name, folder)
    except VitdeployError as error:
        row = {"family": name, "error": str(error)}
    results = read_results(FAMILY_RESULTS)
    rows = {entry["family"]: entry for entry in results.get("rows", [])} | {name: row}
    write_results(FAMILY_RESULTS, {"rows": [rows[family] for family in TRAINED if family in rows]})
    misses = misses_of_family(row)
    said = "; ".join(misses) or f"top-1 {row['top1']:.4f}, trained in {row['train_s']:.0f} s, as expected"
    print(f"{name:13} {time.monotonic() - start:4.0f} s: {said}", flush=True)
    return not misses


def measure_family(name: str, folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the recipe of a family from nothing, and return its row."""
    changes = {**NO_TIMES, **(changes or {})}
    if name in TEACHER_OF:
        changes["train.options.distillation.teacher"] = str(taught(TEACHER_OF[name], folder, changes))
    recipe = read_recipe(RECIPES / f"{name}.yaml", changes)
    shutil.rmtree(folder / name, ignore_errors=True)
    result = run(recipe, folder / name)
    graphs = {path.name: read_onnx(path) for path in sorted((folder / name).glob("model*.onnx"))}
    built_from = bench(
        [folder / name / "model.safetensors", graphs["model.fp16.onnx"].path, graphs["model.int8.onnx"].path],
        result.report.conditions.data,
        options=ACCURACY_ONLY,
    )
    checkpoint = read_checkpoint(folder / name / "model.safetensors")
    seconds = {outcome.stage: outcome.seconds for outcome in result.stages}
    baseline = next(row for row in result.report.rows if row.backend == "pytorch")
    return {
        "family": name,
        "arguments": checkpoint.manifest.model.arguments,
        "parameters": parameters(folder / name / "model.safetensors"),
        "epochs": recipe.train.options.epochs,
        "best_epoch": checkpoint.manifest.metrics["best_epoch"],
        "train_s": seconds["train"],
        "test_images": result.report.conditions.n_samples,
        "top1": baseline.top1,
        "top1_ci95": baseline.top1_ci95,
        "rows": {
            **graph_rows(result.report, ("model.onnx", "model.int8.onnxruntime.onnx")),
            **graph_rows(built_from, ("model.fp16.onnx", "model.int8.onnx")),
        },
        "engines": {row.precision: engine_row(row, seconds) for row in engines(result.report)},
        "nodes": {label: len(graph.load().graph) for label, graph in graphs.items()},
        "conditions": conditions(result.report),
    }


def taught(teacher: str, folder: Path, changes: dict[str, Any]) -> Path:
    """Return the teacher's checkpoint; it is trained first where it is not there."""
    path = folder / teacher / "model.safetensors"
    if not path.exists():
        run(read_recipe(RECIPES / f"{teacher}.yaml", changes), folder / teacher)
    return path


def graph_rows(report: Report, names: Sequence[str]) -> dict[str, Any]:
    """Return what was measured of graphs that ONNX Runtime executed on the test split, against PyTorch."""
    fields = {
        "status",
        "reason",
        "top1",
        "delta_top1_pp",
        "delta_ci95_pp",
        "agreement",
        "logits_sqnr_db",
        "logits_identical",
        "size_bytes",
    }
    found = {row.name: row for row in report.rows if row.backend == "onnxruntime"}
    return {name: found[name].model_dump(mode="json", include=fields) for name in names}


def engines(report: Report) -> list[Row]:
    return [row for row in report.rows if row.name.endswith(".engine")]


def engine_row(row: Row, seconds: dict[str, float | None]) -> dict[str, Any]:
    """Return what became of an engine; ``built`` is one that no device here could execute."""
    return {
        "status": row.status,
        "reason": row.reason,
        "size_bytes": row.size_bytes,
        "build_s": seconds[f"build {row.precision}"],
        "delta_top1_pp": row.delta_top1_pp,
        "logits_sqnr_db": row.logits_sqnr_db,
    }


def parameters(path: Path) -> int:
    """Return how many numbers a checkpoint holds."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return sum(int(file.get_tensor(name).size) for name in file.keys())  # noqa: SIM118


def conditions(report: Report) -> dict[str, Any]:
    """Return where, when and with what the numbers were measured."""
    return {
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "environment": report.environment.model_dump(mode="json", exclude_none=True),
        "versions": environment.versions(),
        "data": report.conditions.data,
        "other_load_cores": report.conditions.other_load_cores,
    }


if __name__ == "__main__":
    main()
