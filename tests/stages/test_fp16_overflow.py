"""Values beyond 65504 are found, named, and kept in FP32."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from foreign_onnx import FOREIGN, write_foreign
from notes import Notes

from vitdeploy.records import PrecisionPlan
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow

GREAT = "z1 = Add(b, y) z2 = Mul(z1, big) z3 = Mul(z2, big) z4 = Div(z3, big) scores = Div(z4, big)"
LARGE = FOREIGN.replace("scores = Add(b, y)", GREAT).replace("float two =", "float big = {900.0}, float two =")


@pytest.fixture
def model(tmp_path: Path):
    source = write_foreign(tmp_path / "f.onnx", LARGE)
    return export(source, tmp_path / "m.onnx", options=ExportOptions(preprocess="digits"))


def test_without_images_the_golden_samples_find_it_and_the_note_names_it(tmp_path: Path, model) -> None:
    notes = Notes()
    made = quantize(model, tmp_path / "x.onnx", precision="fp16", progress=notes)
    assert any(re.search(r"first, node '.*' \(Mul\) gives '.*' up to ", line) for line in notes.lines)
    (entry,) = [one for one in made.manifest.plan.entries if one.group == "beyond FP16"]
    kept = {node.name: node for node in made.load().graph if node.name in entry.nodes}
    assert {node.outputs[0].dtype.name for node in kept.values() if node.op_type in ("Mul", "Div")} == {"FLOAT"}
    plan = PrecisionPlan(profile="mine", remainder="fp16", entries=(entry,))
    again = quantize(model, tmp_path / "y.onnx", precision="fp16", options=QuantizeOptions(plan=plan))
    assert np.isfinite(again.golden.outputs).all()


def test_calibration_images_find_it(tmp_path: Path, model) -> None:
    made = quantize(model, tmp_path / "x.onnx", precision="fp16", calibration="digits:train")
    check = next(check for check in made.manifest.checks if check.name == "logits SQNR")
    assert check.value > 40
    assert "values leave the FP16 range" in {entry.reason for entry in made.manifest.plan.entries}
