"""A run in which everything is fresh opens each file once and hashes it once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vitdeploy.pipeline import run

pytestmark = pytest.mark.slow

COUNTED = """
import json, os, sys
from collections import Counter
from pathlib import Path

import safetensors
from vitdeploy.artifacts import checkpoint, digest, engine, files, onnx_model
from vitdeploy.pipeline import run

recipe, folder, *roots = sys.argv[1:]
opened, hashed = Counter(), Counter()
roots = [os.path.realpath(root) for root in roots]


def note(path, counter):
    real = os.path.realpath(path)
    inside = any(real.startswith(root + os.sep) for root in roots)
    if inside and os.path.isfile(real) and not os.path.basename(real).startswith(".lock"):
        counter[real] += 1


def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        if not path.endswith(".safetensors"):  # its first bytes are looked at before the library opens it
            note(path, opened)


sys.addaudithook(hook)

# safetensors opens files in Rust, which the hook does not see
genuine = safetensors.safe_open
def safe_open(path, *rest, **options):
    note(path, opened)
    return genuine(path, *rest, **options)
safetensors.safe_open = safe_open
assert not hasattr(checkpoint, "safe_open")  # imported where it is used, so the replacement is the one that is used

def counted(module, name, path_of):
    plain = getattr(module, name)
    def wrapped(*arguments, **options):
        note(path_of(*arguments), hashed)
        return plain(*arguments, **options)
    setattr(module, name, wrapped)

counted(onnx_model, "check_payload", lambda manifest, found, path, remedy: path)
counted(checkpoint, "check_payload", lambda manifest, found, path, remedy: path)
counted(engine, "check_payload", lambda manifest, found, path, remedy: path)
from vitdeploy.datasets import folder as image_folder
counted(image_folder, "sha256_of_file", lambda path: path)

result = run(recipe, folder)
print(json.dumps([[stage.status for stage in result.stages], opened, hashed]))
"""


def counts(recipe: Path, folder: Path, *roots: Path) -> tuple[list[str], Counter[str], Counter[str]]:
    command = [sys.executable, "-c", COUNTED, str(recipe), str(folder), *map(str, roots)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    stages, opened, hashed = json.loads(done.stdout.splitlines()[-1])
    return stages, Counter(opened), Counter(hashed)


def test_on_digits(finished_run: Path, quick_changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {}
    for name, value in quick_changes.items():
        *groups, last = name.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    recipe = finished_run.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    stages, opened, hashed = counts(recipe, finished_run, finished_run)
    assert set(stages) == {"fresh"}
    artifacts = {str(path.resolve()) for path in finished_run.iterdir() if path.suffix in {".onnx", ".engine"}}
    artifacts.add(str((finished_run / "model.safetensors").resolve()))
    assert set(hashed) == artifacts
    assert set(hashed.values()) == {1}
    assert artifacts <= set(opened)
    assert {Path(name).name: n for name, n in opened.items() if n != 1} == {"report.json": 2}, (
        "its digest is in its pages"
    )


def test_on_a_folder_of_images_that_several_stages_read(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for label in range(2):
        (photos / f"class_{label}").mkdir(parents=True)
        for index in range(24):
            image = Image.new("L", (8, 8), 40 + 100 * label + index)
            image.save(photos / f"class_{label}" / f"{index}.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {photos}\n"
        "train:\n"
        "  arguments: {image_size: 8, patch: 4, width: 16, depth: 1, heads: 1}\n"
        "  options: {epochs: 1, batch: 8}\n"
        "quantize:\n"
        f"  - {{precision: int8, target: onnxruntime, calibration: '{photos}:train', "
        f"options: {{validation: '{photos}:validation'}}}}\n"
        "build: {precisions: []}\n"
        f"bench: {{data: '{photos}:test', options: {{rounds: 1, iterations: 1, processes: false}}}}\n"
    )
    assert {stage.status for stage in run(recipe, tmp_path / "run").stages} == {"done"}
    stages, opened, hashed = counts(recipe, tmp_path / "run", photos, tmp_path / "run")
    assert set(stages) == {"fresh"}
    images = {str(path.resolve()) for path in photos.rglob("*.png")}
    assert images <= set(hashed)
    assert set(hashed.values()) == {1}
    assert {Path(name).name: n for name, n in opened.items() if n != 1} == {"report.json": 2}, (
        "its digest is in its pages"
    )
