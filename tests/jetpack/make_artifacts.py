"""Make what a workstation hands over: a finished quick run and a tiny exported model, in the folder that is named."""

from __future__ import annotations

import sys
from pathlib import Path

from quick_run import QUICK
from tiny_checkpoint import write_tiny_checkpoint

from vitdeploy.pipeline import read_recipe, run
from vitdeploy.stages.export import ExportOptions, export

folder = Path(sys.argv[1])
run(read_recipe(None, QUICK), folder / "run")
checkpoint = write_tiny_checkpoint(folder / "tiny.safetensors")
options = ExportOptions(golden="digits:validation", reference="digits:test")
export(checkpoint.path, folder / "tiny.onnx", options=options)
