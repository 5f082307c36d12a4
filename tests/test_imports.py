"""What needs torch and what does not: from a finished ONNX file onwards, everything works where it is not installed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).resolve().parents[1] / "vitdeploy"
BLOCKED = ("torch", "torchvision", "timm", "lightning_fabric", "transformers", "vit_pytorch")
MAY_IMPORT_TORCH = ("models/", "training/", "backends/pytorch.py", "checkpoints/")

PROGRAM = """
import contextlib, io, json, sys

BLOCKED = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(BLOCKED))  # None: importing it raises ModuleNotFoundError
from vitdeploy.cli import main
results = []
for line in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    results.append([line, code, out.getvalue(), err.getvalue()])
assert not any(sys.modules[name] for name in BLOCKED)
print(json.dumps(results))
"""


def without_torch(folder: Path, lines: list[str]) -> dict[str, tuple[int, str, str]]:
    """Run commands in one process in which nothing of torch can be imported; line → code, stdout, stderr."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(BLOCKED), json.dumps(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line: (code, out, err) for line, code, out, err in json.loads(done.stdout.splitlines()[-1])}


def test_everything_from_an_onnx_file_onwards_works_without_torch(finished_run: Path) -> None:
    Image.new("L", (8, 8), 90).save(finished_run / "image.png")
    lines = [
        "quantize model.onnx -o q/fp16.onnx --precision fp16",
        "quantize model.onnx -o q/int8.onnx --precision int8 --calibration digits --samples 64",
        "quantize model.onnx -o q/ort.onnx --precision int8 --target onnxruntime --calibration digits --samples 64",
        "sensitivity model.onnx --calibration digits --samples 64 --level kinds --images 20 -o q/sensitivity.json",
        "build q/int8.onnx -o q/int8.engine --backend tensorrt-rtx --compute-capability 8.9",
        "bench model.onnx q/ort.onnx q/int8.engine --data digits --rounds 1 --iterations 2 --report r --json",
        "compare r r",
        "predict q/ort.onnx image.png --json",
        "inspect q/int8.engine",
        "inspect model.safetensors",
        "verify q/int8.onnx --json",
        "calibration make digits --samples 16 -o c",
        "calibration show c",
        "calibration check c",
        "models vit*",
        "doctor --json",
        "run --print-recipe",
    ]
    results = without_torch(finished_run, lines)
    for line, (code, _, errors) in results.items():
        assert code == 0, (line, errors)
    report = json.loads(results[lines[5]][1])
    assert "stored" in report["baseline"]["accuracy_against"]  # PyTorch's logits, as the run's export kept them
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["model.onnx"]["agreement"] == 1.0
    assert rows["ort.onnx"]["logits_sqnr_db"] > 15
    diagnosis = {entry["name"]: entry for entry in json.loads(results["doctor --json"][1])}
    assert diagnosis["pytorch"]["status"] == "missing"
    assert "pip install 'vitdeploy[torch]'" in diagnosis["pytorch"]["remedy"]
    assert diagnosis["onnxruntime"]["status"] == "ok"


def test_what_needs_torch_names_the_extra(finished_run: Path) -> None:
    lines = [
        "train digits -o t.safetensors --epochs 1",
        "export model.safetensors -o e.onnx",
        "predict model.safetensors image.png",
        "run -o other",
        "bench model.onnx --data digits --baseline model.safetensors",
    ]
    Image.new("L", (8, 8), 90).save(finished_run / "image.png")
    for line, (code, out, errors) in without_torch(finished_run, lines).items():
        assert (code, out) == (1, ""), line
        last = errors.splitlines()[-1]
        assert last.startswith("error: "), (line, errors)
        assert "vitdeploy[torch]" in last, (line, errors)
        assert "Traceback" not in errors


def test_a_fresh_run_needs_no_torch(finished_run: Path, quick_changes: dict[str, object]) -> None:
    line = " ".join(["run -o .", *(f"--set {name}={value}" for name, value in quick_changes.items())])
    code, out, errors = without_torch(finished_run, [line])[line]
    assert code == 0, errors
    assert "train: fresh" in errors
    assert "bench: fresh" in errors, errors
    assert "report: report.html" in out


def test_torch_is_imported_at_the_top_only_where_it_belongs() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        names: set[str] = set()
        for node in ast.parse(path.read_text("utf8")).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        found[place] = names & {"torch", "torchvision", "timm", "lightning_fabric"}
    assert found["models/vit.py"] == {"torch"}, "the lint reads imports"
    assert [place for place, names in found.items() if names and not place.startswith(MAY_IMPORT_TORCH)] == []
