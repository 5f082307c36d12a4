"""vitdeploy: vision transformers from weights to a measured engine.

The public names stand in ``__init__.pyi`` and are loaded when they are first used, so ``import vitdeploy`` costs
milliseconds and needs neither torch nor onnxruntime. One function per stage; what one returns the next takes:

    import vitdeploy as vd
    checkpoint = vd.train("digits", "vit.safetensors")
    model = vd.export(checkpoint, "vit.onnx")
    int8 = vd.quantize(model, "vit.int8.onnx", precision="int8", calibration="digits")
    engine = vd.build(int8, "vit.engine")
    report = vd.bench([checkpoint, model, int8, engine], "digits")
    vd.write_report(report, "report")
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_ORIGINS = {
    alias.asname or alias.name: (str(node.module), alias.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""Public name → its module and its name there."""

__all__ = sorted([*_ORIGINS, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _ORIGINS[name]
    value = getattr(importlib.import_module(module), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORIGINS})
