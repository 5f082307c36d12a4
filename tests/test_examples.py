"""The scripts and the workflow of ``examples/``, run on small models."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted_backend import NAME, scripted

import vitdeploy as vd
from vitdeploy.cli import main
from vitdeploy.reading import parse_yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.torch]


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a script as a program, in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write_coloured(folder: Path, images: int) -> Path:
    """Write images of three classes that are told apart by colour."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            pixels = generator.integers(0, 60, (32, 32, 3), np.uint8)
            pixels[..., 2 - number] += 150
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_fine_tuned_model_of_timm_arrives_as_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    import torch

    torch.manual_seed(3)
    weights = tmp_path / "w.pth"
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), weights)
    photos = write_coloured(tmp_path / "photos", 24)
    code = run_example(
        "fine_tune_and_ship.py", monkeypatch, photos, tmp_path / "shipped", "--quick", "--model", "timm:test_vit",
        "--weights", weights, "--epochs", 1, "--batch", 24, "--learning-rate", "1e-3",
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.rstrip().endswith("; verified")
    with vd.load(tmp_path / "shipped" / "vit.bundle") as model:
        best = model.predict(photos / "green" / "0.png")[0].classes[0]
    assert best.name in {"blue", "green", "red"}


def test_a_hugging_face_folder_becomes_the_fastest_graph_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import transformers

    monkeypatch.setattr("vitdeploy.measure.timing.wait_for_rest", lambda: True)
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label={0: "blue", 1: "green", 2: "red"}, label2id={"blue": 0, "green": 1, "red": 2},
    )  # fmt: skip
    module = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "my-vit"
    module.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    photos = write_coloured(tmp_path / "photos", 60)
    with torch.no_grad():  # a head that tells the colours apart, from the features that this backbone has of them
        fit_head(module, photos)
    module.save_pretrained(folder)
    output = tmp_path / "fast.onnx"
    with scripted():  # latencies of a script, by which 8 bits are the fastest
        code = run_example(
            "huggingface_within_budget.py", monkeypatch, folder, photos, output, "--max-drop", 20, "--time-on", NAME
        )
    assert code == 0, capsys.readouterr().err
    assert f"{output}: int8" in capsys.readouterr().out
    with vd.load(output) as model:
        assert model.predict(photos / "green" / "0.png")[0].classes[0].name == "green"


def fit_head(module: Any, photos: Path) -> None:
    """Let the head of a model answer with the class whose mean feature is nearest."""
    import torch

    means = []
    for name in ("blue", "green", "red"):
        pixels = np.stack([np.asarray(Image.open(file)) for file in sorted((photos / name).glob("*.png"))[:8]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        means.append(module.vit(images).last_hidden_state[:, 0].mean(0))
    middle = torch.stack(means).mean(0)
    directions = torch.stack(means) - middle
    module.classifier.weight.copy_(20 * directions)
    module.classifier.bias.copy_(-20 * directions @ middle)


@pytest.fixture
def repository(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as the workflow expects it, but for its data, which are the digits."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, source in (("model.onnx", "model.onnx"), ("model.int8.onnx", "model.int8.onnxruntime.onnx")):
        (folder / name).write_bytes((finished_run / source).read_bytes())
    monkeypatch.chdir(folder)
    return folder


def gate_commands() -> list[list[str]]:
    """Return the commands of the workflow after its installation, on the digits and with few turns."""
    workflow = parse_yaml((EXAMPLES / "regression-gate" / "workflow.yml").read_text("utf8"))
    lines = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    assert lines[0] == "pip install vitdeploy"
    words = [shlex.split(one.replace("photos:test", "digits:test")) for line in lines[1:] for one in line.split(" && ")]
    quick = ["--rounds", "1", "--iterations", "1", "--no-processes", "--no-image-to-label", "--no-energy"]
    return [[*command[1:], *(quick if command[1] == "bench" else [])] for command in words]


def test_the_gate_passes_what_is_as_good_and_stops_what_got_worse(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *checks, bench, compare = gate_commands()
    assert [main(command) for command in checks] == [0, 0]
    assert main(bench) == 0
    (repository / "report").rename(repository / "baseline")
    vd.write_report(vd.read_report("baseline"), "report")
    assert main(compare) == 0
    capsys.readouterr()
    baseline = vd.read_report("baseline")
    worse = [row.model_copy(update={"top1": row.top1 - 0.02}) if row.top1 else row for row in baseline.rows]
    vd.write_report(baseline.model_copy(update={"rows": tuple(worse)}), "report")
    assert main(compare) == 3
    assert re.search(r"2\.00", capsys.readouterr().err)
