"""One sound input of each kind, the commands that read them, and the commands that write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

READERS: dict[str, tuple[str, ...]] = {
    "own.safetensors": (
        "inspect own.safetensors",
        "verify own.safetensors",
        "export own.safetensors -o new.onnx",
        "convert own.safetensors -o new.safetensors",
        "predict own.safetensors photo.png",
    ),
    "own.onnx": (
        "inspect own.onnx",
        "verify own.onnx",
        "predict own.onnx photo.png",
        "quantize own.onnx --precision fp16 -o new.onnx",
        "package own.onnx -o new.zip",
    ),
    "own.reference.safetensors": ("verify own.onnx --data digits:test", "inspect own.onnx"),
    "table.calib.json": (
        "inspect table.calib.json",
        "quantize own.onnx --precision int8 --calibration table.calib.json -o new.onnx",
    ),
    "table.calib.safetensors": (
        "verify table.calib.json",
        "quantize own.onnx --precision int8 --calibration table.calib.json -o new.onnx",
    ),
    "set/manifest.json": ("calibration show set", "calibration check set"),
    "report/report.json": ("compare report report", "inspect report/report.json"),
    "own.zip": ("inspect own.zip", "verify own.zip", "predict own.zip photo.png"),
    "theirs.pth": (
        "convert vit --weights theirs.pth --argument heads=2 -o new.safetensors",
        "export theirs.pth -o new.onnx",
    ),
    "theirs.npz": (
        "convert vit --weights theirs.npz --argument heads=2 -o new.safetensors",
        "inspect theirs.npz",
    ),
    "hub/config.json": ("convert hf:./hub -o new.safetensors", "export hub -o new.onnx"),
    "hub/model.safetensors": ("convert hf:./hub -o new.safetensors",),
    "hub/preprocessor_config.json": ("export hub -o new.onnx",),
    "theirs.onnx": ("export theirs.onnx --preprocess digits -o new.onnx", "inspect theirs.onnx"),
    "recipe.yaml": ("run recipe.yaml -o new", "train digits --recipe recipe.yaml -o x.safetensors"),
    "names.txt": ("export own.safetensors --labels names.txt -o new.onnx",),
    "preprocess.json": ("export theirs.onnx --preprocess preprocess.json -o new.onnx",),
    "plan.yaml": ("quantize own.onnx --precision fp16 --plan plan.yaml -o new.onnx",),
    "photo.png": ("predict own.onnx photo.png",),
    "photos/train/ant/0.png": ("calibration make photos:train -o made --samples 4",),
}
"""What is damaged, and the commands that read it."""

SIZE = {"image_size": 8, "patch": 2, "channels": 1, "width": 32, "depth": 1, "heads": 2}
SMALL = " ".join(f"--argument {name}={value}" for name, value in SIZE.items())
TRAIN = f"train digits --model vit {SMALL} --epochs 2 --resume -o new.safetensors"
INT8 = "quantize own.onnx --precision int8 --calibration table.calib.json -o new.onnx"
FP16 = "quantize own.onnx --precision fp16 -o new.onnx"
BUDGET = (
    "quantize own.onnx --precision int8 --target onnxruntime --calibration digits:train --samples 32 --effort fast "
    "--max-drop 50 --validation digits:validation --time-on onnxruntime -o new.onnx"
)
BENCH = (
    "bench own.onnx --data digits:test --rounds 1 --iterations 2 --no-processes --report new --predictions new.parquet"
)
SENSITIVITY = "sensitivity own.onnx --calibration table.calib.json --level kinds --effort fast -o new.json"
BUILD = "build own.onnx --backend tensorrt-rtx --compute-capability 8.9 -o new.engine"
WRITERS: dict[str, str | None] = {
    "convert own.safetensors -o new.safetensors": (
        "convert vit --weights theirs.pth --argument heads=2 -o new.safetensors"
    ),
    "export own.safetensors -o new.onnx --reference digits:test": "export own.safetensors -o new.onnx",
    "export theirs.onnx --preprocess digits -o new.onnx": "export own.safetensors -o new.onnx --reference digits:test",
    FP16: INT8,
    INT8: FP16,
    BUDGET: BUDGET.replace("--max-drop 50", "--max-drop 40"),
    f"{SENSITIVITY} --data digits:test --images 16": f"{SENSITIVITY} --data digits:test --images 8",
    "calibration make digits:train -o made --samples 40": "calibration make digits:train -o made --samples 30",
    "calibration observe own.onnx digits:train --samples 40 -o new.calib.json": (
        "calibration observe own.onnx digits:train --samples 30 -o new.calib.json"
    ),
    "calibration merge table.calib.json other.calib.json -o new.calib.json": (
        "calibration observe own.onnx digits:train --samples 30 -o new.calib.json"
    ),
    "package own.onnx -o new.zip": "package own.onnx --licence MIT -o new.zip",
    "package own.onnx -o made": "package own.onnx --licence MIT -o made",
    f"{BENCH} --samples 20": f"{BENCH} --samples 10",
    "compare report report --html new.html": "compare report report report --html new.html",
    "predict own.onnx pictures --parquet new.parquet": "predict own.onnx pictures --top 1 --parquet new.parquet",
    TRAIN: f"{TRAIN} --seed 1",
    "run recipe.yaml -o new": "run recipe.yaml -o new --set train.options.seed=1",
}
"""Commands that write, and such as write something else under the same name."""
PRINTERS = (
    "predict own.onnx pictures --csv",
    "predict own.onnx photo.png --json",
    "inspect own.onnx",
    "verify own.onnx",
    "calibration show set",
    "compare report report",
    "diff own.onnx own.onnx --data digits:test --samples 4",
    "models vit*",
    "doctor",
)
"""Commands that only print."""
TIMED = ("bench", "run", "build", "sensitivity", "--parquet", "--max-drop", "--html")
"""Words of commands that write other bytes each time: what they measure, or a time of writing."""

RECIPE = f"""\
data: digits
train:
  model: vit
  arguments: {json.dumps(SIZE)}
  options: {{epochs: 1}}
quantize:
  - {{precision: int8, target: onnxruntime, options: {{effort: fast}}}}
build:
  precisions: []
bench:
  options: {{rounds: 1, iterations: 2, samples: 20, processes: false}}
"""
PICTURES = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}


def writers() -> dict[str, str | None]:
    """Return the commands that write, ``build`` among them where this machine can."""
    from vitdeploy.backends import get_backend

    if get_backend("tensorrt-rtx").unavailable() is not None:
        return WRITERS
    return {**WRITERS, BUILD: f"{BUILD} --profiling none"}


def sound_inputs(folder: Path) -> None:
    """Write one sound input of each kind."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from vitdeploy.cli import main
    from vitdeploy.models import create_model

    def call(command: str) -> None:
        if main(command.split()) != 0:
            raise SystemExit(f"a sound input cannot be made: vitdeploy {command}")

    os.chdir(folder)
    call(f"train digits --model vit {SMALL} --epochs 1 -o own.safetensors")
    call("export own.safetensors -o own.onnx --reference digits:test")
    call("calibration observe own.onnx digits:train --samples 32 -o table.calib.json")
    call("calibration observe own.onnx digits:validation --samples 16 -o other.calib.json")
    call("calibration make digits:train -o set --samples 4")
    call("bench own.onnx --data digits:test --samples 20 --iterations 2 --report report")
    call("package own.onnx -o own.zip")
    torch.manual_seed(0)
    theirs = create_model(
        "vit", **{**SIZE, "image_size": 32, "patch": 16, "channels": 3, "num_classes": 5}
    ).state_dict()
    torch.save({"state_dict": theirs, "epoch": 3}, "theirs.pth")
    np.savez("theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    Path("hub").mkdir()
    save_file(theirs, "hub/model.safetensors")
    arguments = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": PICTURES,
    }
    Path("hub/config.json").write_text(json.dumps(config))
    Path("hub/preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}, "resample": 2}')
    shutil.copy("own.onnx", "theirs.onnx")
    _without_manifest(Path("theirs.onnx"))
    Path("recipe.yaml").write_text(RECIPE)
    Path("names.txt").write_text("\n".join(f"digit {index}" for index in range(10)))
    Path("preprocess.json").write_text('{"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.5]}')
    Path("plan.yaml").write_text("remainder: fp16\n")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save("photo.png")
    Path("pictures").mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(f"pictures/{index}.png")
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            Path(f"photos/{split}/{name}").mkdir(parents=True)
            for index in range(3):
                Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(f"photos/{split}/{name}/{index}.png")


def _without_manifest(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
