"""What precision an engine's layers really run in, from its inspector's JSON in both dialects.

TensorRT 10 writes the types of a layer's inputs into one text (``"Format/Datatype": "Row major linear FP16 format"``),
11 into a key of their own (``"Format": …, "DataType": "FP16"``) and calls the engine's own tensors ``I/O Tensors``
instead of ``Bindings``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vitdeploy.errors import BackendError
from vitdeploy.reading import parse_json
from vitdeploy.records import Precision

# spelling in the inspector's text → name, the narrowest first
SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"\b(?:fp4|e2m1\w*)\b", "fp4"),
    (r"\bint4\b", "int4"),
    (r"\b(?:int8|i8)\b", "int8"),
    (r"\b(?:fp8\w*|e4m3\w*|e5m2\w*|float8\w*)\b", "fp8"),
    (r"\b(?:bf16|bfloat16)\b", "bf16"),
    (r"\b(?:fp16|half|float16|f16)\b", "fp16"),
    (r"\b(?:fp32|float|float32|f32|tf32)\b", "fp32"),
)
NAMES = tuple(name for _, name in SPELLINGS)
# copies, waits and constants compute nothing
IDLE_LAYERS = frozenset({"reformat", "noop", "constant", "signal", "wait", "shape_call", "shape"})
# one layer that stands for a whole subgraph: its kernels' types are not told
OPAQUE = re.compile(r"\{ForeignNode|^Myelin$")


def precision_by_layer(text: str) -> dict[str, int]:
    """Return precision → number of layers that compute in it; a layer counts for the narrowest type that it reads.

    An INT8 matrix product that adds a half-precision residual counts as int8. A layer that stands for a whole subgraph
    without naming its kernels counts as ``opaque``.

    Raises:
        BackendError: The text is no JSON, or tells no layer.
    """
    try:
        layers = parse_json(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the engine inspector's answer is not understood: {text[:80]!r}") from error
    counts: Counter[str] = Counter()
    for layer in layers:
        name = layer_precision(layer) if isinstance(layer, dict) else "unknown"
        if name is not None:
            counts[name] += 1
    return {name: counts[name] for name in (*NAMES, "opaque", "unknown") if counts[name]}


def layer_precision(layer: Mapping[str, Any]) -> str | None:
    """Return the narrowest floating-point or 8-bit type that a layer reads; None where it computes nothing."""
    kind = str(layer.get("LayerType", ""))
    if kind.lower() in IDLE_LAYERS:
        return None
    types = _types(layer.get("Inputs")) or _types(layer.get("Outputs"))
    narrowest = next((name for name in NAMES if name in types), None)
    if OPAQUE.search(str(layer.get("Name", ""))) or OPAQUE.search(kind):
        return "opaque"
    return narrowest if narrowest is not None else (None if types else "unknown")


def missing_precision(counts: Mapping[str, int], precision: Precision) -> str | None:
    """Return why the engine does not compute in what the graph asks for; None where it does, or cannot be told."""
    wanted = {"fp16": ("fp16", "bf16"), "int8": ("int8",), "fp8": ("fp8",), "mixed": ("int8", "fp8", "fp16")}
    names = wanted.get(precision)
    if names is None or "opaque" in counts or "unknown" in counts or any(counts.get(name) for name in names):
        return None
    found = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
    return f"the graph is {precision}, and no layer of the engine runs in {' or '.join(names)} (layers: {found})"


def _types(tensors: Any) -> set[str]:
    found: set[str] = set()
    for tensor in tensors if isinstance(tensors, list) else []:
        if not isinstance(tensor, dict):
            continue
        text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Datatype") or "")
        known = next((name for pattern, name in SPELLINGS if re.search(pattern, text, re.IGNORECASE)), None)
        if known is not None:
            found.add(known)
        elif re.search(r"\b(?:int32|int64|bool|uint8)\b", text, re.IGNORECASE):
            found.add("integer")
    return found
