"""What precision an engine's products really run in, from its inspector's JSON in both dialects.

TensorRT 10 writes the types of a layer's inputs into one text (``"Format/Datatype": "Row major linear FP16 format"``),
11 into a key of their own (``"Format": …, "DataType": "FP16"``) and calls the engine's own tensors ``I/O Tensors``
instead of ``Bindings``.

Only layers that multiply are judged: gemm, conv, attention, and fused layers that contain one. An engine may have as
many kernels that read INT8 as its graph has quantized products and still compute every product in FP16, behind
kernels that dequantize (NVIDIA/TensorRT issue 3784).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitdeploy.errors import BackendError
from vitdeploy.reading import parse_json
from vitdeploy.records import Check, Manifest, Precision

Kind = Literal["gemm", "conv", "attention", "other", "opaque", "unknown"]

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
INTEGERS = re.compile(r"\b(?:int32|int64|bool|uint8)\b", re.IGNORECASE)
# what a kernel's name says of the operands that it multiplies, in NVIDIA's own spellings; the first that matches holds
KERNELS: tuple[tuple[str, str], ...] = (
    (r"e2m1|fp4|nvf4", "fp4"),
    (r"i8i8|i8i32|i8f32|i8816|i16832|s8s8|int8|imma", "int8"),
    (r"e4m3|e5m2|fp8|f8f8|qgmma|qmma", "fp8"),
    (r"bf16", "bf16"),
    (r"tf32|f32f32|sgemm|s1688gemm|ffma", "fp32"),
    (r"f16f16|h16816|h1688|h884|hgemm|hmma|fp16", "fp16"),
)
ATTENTION = re.compile(r"(?:^|[^a-z])(?:f?mha|gem[mv]_mha|flash_?att|attention)", re.IGNORECASE)
CONVOLUTION = re.compile(r"conv|fprop|winograd|implicit_gemm", re.IGNORECASE)
GEMM = re.compile(
    r"gem[mv]|matrix_?multiply|matmul|fullyconnected|xmma|cutlass|cublas|einsum|^__my\w*_Fc", re.IGNORECASE
)
# copies, waits and constants compute nothing
IDLE_LAYERS = frozenset({"reformat", "noop", "constant", "signal", "wait", "shape_call", "shape"})
# one layer that stands for a whole subgraph: the types of its kernels are not reported
OPAQUE = re.compile(r"\{ForeignNode|^Myelin$")
SOURCE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: what it does, the precision of its product, and the ONNX nodes that went into it.

    ``precision`` is None where the layer multiplies nothing, or does not say.
    """

    name: str
    kind: Kind
    precision: str | None = None
    sources: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        """Return whether the layer computes a product."""
        return self.kind in ("gemm", "conv", "attention")


def read_layers(text: str) -> list[Layer]:
    """Return the layers that compute.

    Raises:
        BackendError: The text is no JSON, or tells no list of layers.
    """
    layers = [read_layer(one) if isinstance(one, dict) else Layer(str(one), "unknown") for one in listed_layers(text)]
    return [layer for layer in layers if layer is not None]


def listed_layers(text: str) -> list[Any]:
    """Return every layer as the inspector tells it: a dictionary, or a name where an engine tells names alone.

    Raises:
        BackendError: The text is no JSON, or tells no list of layers.
    """
    try:
        layers = parse_json(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the engine inspector's answer cannot be read: {text[:80]!r}") from error
    if not isinstance(layers, list) or not layers:
        raise BackendError("the engine inspector lists no layers: the engine was built without profiling detail")
    return layers


def read_layer(layer: Mapping[str, Any]) -> Layer | None:
    """Return what a layer does; None where it computes nothing."""
    name, type_, tactic = (str(layer.get(key) or "") for key in ("Name", "LayerType", "TacticName"))
    sources = tuple(dict.fromkeys(SOURCE.findall(str(layer.get("Metadata") or ""))))
    if type_.lower() in IDLE_LAYERS:
        return None
    if OPAQUE.search(name) or OPAQUE.search(type_):
        return Layer(name, "opaque", None, sources)
    types = types_of(layer.get("Inputs")) or types_of(layer.get("Outputs"))
    if not types and not tactic:
        return Layer(name, "unknown", None, sources)
    kind = _kind(name, type_, tactic)
    if kind == "other":
        return None if types == ["integer"] else Layer(name, kind, None, sources)
    return Layer(name, kind, _product_precision(tactic, types), sources)


def _kind(name: str, type_: str, tactic: str) -> Kind:
    """Return what a layer does, by its type and its kernel: a node's own name may have any word in it."""
    if ATTENTION.search(type_) or ATTENTION.search(tactic):
        return "attention"
    if CONVOLUTION.search(type_) or CONVOLUTION.search(tactic):
        return "conv"
    return "gemm" if any(GEMM.search(text) for text in (type_, tactic)) or name.startswith("__myl_Fc") else "other"


def _product_precision(tactic: str, types: Sequence[str]) -> str | None:
    """Return the type that a product's operands have when they are multiplied.

    The kernel's name tells it where it follows NVIDIA's scheme (``sm80_xmma_gemm_i8i8_i8i32_f32_…``). Else the first
    input is the operand; what comes after it may be weights, which a kernel may widen, or a residual that it adds.
    """
    by_name = next((name for pattern, name in KERNELS if re.search(pattern, tactic, re.IGNORECASE)), None)
    if by_name is not None:
        return by_name
    return next((name for name in types if name != "integer"), None)


def precision_by_layer(layers: Sequence[Layer]) -> dict[str, int]:
    """Return precision → number of products in it, then how many layers are ``opaque`` or ``unknown``."""
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.multiplies:
            counts[layer.precision or "unknown"] += 1
        elif layer.kind in ("opaque", "unknown"):
            counts[layer.kind] += 1
    return {name: counts[name] for name in (*NAMES, "opaque", "unknown") if counts[name]}


def judge_precision(layers: Sequence[Layer], manifest: Manifest) -> Check:
    """Return whether the engine computes in what its graph asks for.

    FP16: at least half of the products. INT8 and FP8: as many as the graph quantizes, by the nodes that the layers name
    as their source; where they name none, by count, and a count that is lower may be fusion, so it is left unchecked.
    """
    counts = precision_by_layer(layers)
    products = [layer for layer in layers if layer.multiplies]
    found = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
    wanted = _wanted(manifest.precision)
    if not wanted:
        return _check("passed" if products else "unchecked", f"products: {found}")
    if "opaque" in counts or "unknown" in counts:
        return _check("unchecked", f"the engine hides the kernels of some layers (products: {found})")
    if not products:
        return _check("unchecked", "the inspector names no layer that multiplies")
    expected = _quantized_nodes(manifest)
    if manifest.precision == "mixed" and expected:
        wanted = ("int8", "fp8")
    right = [layer for layer in products if layer.precision in wanted]
    title = " or ".join(wanted)
    if not right:
        return _check(
            "failed", f"the graph is {manifest.precision}, and no product runs in {title} (products: {found})"
        )
    if manifest.precision == "fp16":
        share = len(right) / len(products)
        text = f"{len(right)} of {len(products)} products run in {title} (products: {found})"
        return _check("passed" if share >= LEAST_SHARE else "failed", text, share, LEAST_SHARE)
    if not expected:
        return _check("passed", f"{len(right)} of {len(products)} products run in {title}")
    named = {source for layer in products for source in layer.sources} & expected
    kept = {source for layer in right for source in layer.sources} & expected
    if named:
        text = f"{len(kept)} of {len(named)} quantized products run in {title} (products: {found})"
        return _check("passed" if kept == named else "failed", text, len(kept) / len(named), 1.0)
    text = f"{len(right)} products run in {title} and the graph quantizes {len(expected)} (products: {found})"
    if len(right) >= len(expected):
        return _check("passed", text)
    return _check("unchecked", f"{text}: the inspector does not say which, and several may be fused into one")


def _wanted(precision: Precision) -> tuple[str, ...]:
    return {"fp16": ("fp16", "bf16"), "int8": ("int8",), "fp8": ("fp8",), "mixed": ("int8", "fp8", "fp16")}.get(
        precision, ()
    )


def _quantized_nodes(manifest: Manifest) -> set[str]:
    """Return the names of the products that the graph quantizes; empty where its manifest has no plan."""
    if manifest.plan is None:
        return set()
    eight = [entry for entry in manifest.plan.entries if entry.precision in ("int8", "fp8")]
    return {node for entry in eight for node in entry.nodes}


def _check(
    status: Literal["passed", "failed", "unchecked"],
    detail: str,
    value: float | None = None,
    limit: float | None = None,
) -> Check:
    return Check(name="layer precision", status=status, value=value, limit=limit, detail=detail)


def types_of(tensors: Any) -> list[str]:
    """Return the type of each tensor of a list, in order; those that are not reported are left out."""
    found: list[str] = []
    for tensor in tensors if isinstance(tensors, list) else []:
        if not isinstance(tensor, dict):
            continue
        text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Datatype") or "")
        known = next((name for pattern, name in SPELLINGS if re.search(pattern, text, re.IGNORECASE)), None)
        if known is not None:
            found.append(known)
        elif INTEGERS.search(text):
            found.append("integer")
    return found
