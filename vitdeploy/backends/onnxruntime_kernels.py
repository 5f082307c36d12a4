"""What ONNX Runtime makes of a graph: the nodes of the optimised graph that it can be asked to save."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import BackendError
from vitdeploy.sessions import Kernel, Role
from vitdeploy.text import one_line

if TYPE_CHECKING:
    import onnx_ir as ir

_CONVERSIONS = frozenset(("QuantizeLinear", "DequantizeLinear", "Cast", "DynamicQuantizeLinear"))
_PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
_REORDERS = frozenset(("ReorderInput", "ReorderOutput"))
_GENERATED = re.compile(r"^(?:Reorder(?:Input|Output))?$|_token_\d+$")
_FUSED_NAME = "_nchwc"
"""What it appends to the name of a value where a convolution goes to its blocked layout."""


def optimised_kernels(file: str, settings: Any, provider: str) -> tuple[Kernel, ...]:
    """Open a graph once more, have what ONNX Runtime made of it saved, and return its nodes.

    ``settings`` are SessionOptions of this call's own. Fused nodes keep the name of the node that they grew from,
    followed by that of the fusion.

    Raises:
        BackendError: ONNX Runtime cannot save it.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        _, graph = open_and_save(file, settings, provider, Path(folder))
        return tuple(_kernel(node) for node in graph)


def open_and_save(file: str, settings: Any, provider: str, folder: Path) -> tuple[Any, ir.Graph]:
    """Return a new session of a graph, and what ONNX Runtime made of the graph, saved in ``folder``.

    Raises:
        BackendError: ONNX Runtime cannot save it.
    """
    import onnx_ir as ir
    import onnxruntime

    path = folder / "optimised.onnx"
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        session = onnxruntime.InferenceSession(file, settings, providers=[provider])
        return session, ir.load(path).graph
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise BackendError(f"onnxruntime does not tell what it makes of the graph: {one_line(error)}") from error


def sources_of(node: ir.Node) -> tuple[str, ...]:
    """Return the names in the model that a node grew from: its own and those of the values that it gives.

    Names that ONNX Runtime made up (``ReorderOutput_token_3``) are left out: in another graph they are another's.
    """
    names = (str(node.name), *(str(value.name) for value in node.outputs))
    return tuple(name.removesuffix(_FUSED_NAME) for name in names if not _GENERATED.search(name))


def _kernel(node: ir.Node) -> Kernel:
    from vitdeploy.graph.precisions import INTEGER_PRODUCTS, PRODUCTS

    role: Role
    if node.op_type in _REORDERS:
        role = "reorder"
    elif node.op_type in _CONVERSIONS:
        role = "conversion"
    else:
        role = "product" if node.op_type in PRODUCTS else "other"
    dtype = next((value.dtype for value in node.outputs if value.dtype is not None), None)
    precision = "fp32" if dtype is None else _PRECISIONS.get(dtype.name, dtype.name.lower())
    if node.op_type in INTEGER_PRODUCTS:
        precision = "int8"
    return Kernel(node.op_type, precision, role, sources_of(node))
