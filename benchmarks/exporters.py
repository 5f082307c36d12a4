"""Graphs of other packages and exporters beside the native export of the same weights: groups in INT8, and logits SQNR.

    python benchmarks/exporters.py                  # all of them, about ten minutes on 2 cores
    python benchmarks/exporters.py "timm Swin"      # these, the other rows stay

Small models of timm, transformers and torchvision with redrawn weights, as ``tests/conformance/test_exporters.py``
holds them. Results go to ``benchmarks/results/exporters.json``, and ``docs/support-matrix.md`` is rendered from it.
Ends with 1 where a graph has other groups than the native one, or an SQNR more than 1 dB from its.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from support_tables import EXPORTER_RESULTS, misses_of_exporters, read_results, render_all, write_results

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel
from vitdeploy.errors import VitdeployError
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.quantize import quantize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from exporters import EXPORTERS, MODELS, adopt, export_foreign, images, native, optimised

QUICK = QuantizeOptions(method="minmax", equalization="off", effort="fast")
OPTIMISED = {f"optimised, opset {opset}": f"TorchScript, opset {opset}" for opset in (13, 17)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="model", help=f"some of {', '.join(MODELS)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MODELS]
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}, expected some of {', '.join(MODELS)}")
    failed = False
    for name in arguments.names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, Path(folder))
        rows = {entry["model"]: entry for entry in read_results(EXPORTER_RESULTS).get("rows", [])} | {name: row}
        write_results(EXPORTER_RESULTS, {"rows": [rows[one] for one in MODELS if one in rows]})
        misses = misses_of_exporters(row)
        failed |= bool(misses)
        print(f"{name:18} {'; '.join(misses) or 'every form as the native one'}", flush=True)
    render_all()
    sys.exit(1 if failed else 0)


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Return the row of a model: what each way to export it gives, the native one first."""
    calibration = images(folder / "images")
    forms: dict[str, Callable[[Path], OnnxModel]] = {"native": lambda place: native(name, place)}
    for exporter in EXPORTERS:
        forms[exporter] = lambda place, exporter=exporter: foreign(name, exporter, place)  # type: ignore[misc]
    for title, exporter in OPTIMISED.items():
        forms[title] = lambda place, exporter=exporter: foreign(name, exporter, place, fused=True)  # type: ignore[misc]
    found = {}
    for index, (title, make) in enumerate(forms.items()):
        place = folder / str(index)
        place.mkdir()
        try:
            found[title] = fidelity(make(place), place, calibration)
        except VitdeployError as error:
            found[title] = {"error": str(error)}
    return {
        "model": name,
        "forms": found,
        "conditions": {
            "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "environment": environment.current().model_dump(mode="json", exclude_none=True),
            "versions": environment.versions(),
        },
    }


def foreign(name: str, exporter: str, folder: Path, *, fused: bool = False) -> OnnxModel:
    """Export a model with its own package's means, optimise it in ONNX Runtime if asked, and take it over."""
    path = export_foreign(name, exporter, folder / "foreign.onnx")
    return adopt(optimised(path, folder / "fused.onnx") if fused else path, folder / "adopted.onnx")


def fidelity(model: OnnxModel, folder: Path, calibration: str) -> dict[str, Any]:
    """Return how many groups of a graph become INT8, and the logits SQNR."""
    made = quantize(
        model, folder / "int8.onnx", precision="int8", target="onnxruntime", calibration=calibration, options=QUICK,
        progress=None,
    )  # fmt: skip
    assert made.manifest.plan is not None
    groups = sum(entry.precision == "int8" for entry in made.manifest.plan.entries)
    return {"groups": groups, "sqnr_db": next(c.value for c in made.manifest.checks if c.name == "logits SQNR")}


if __name__ == "__main__":
    main()
