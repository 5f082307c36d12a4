"""Operators that are neither ONNX's nor ONNX Runtime's: the libraries that register them, and what to do without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import BackendError
from vitdeploy.text import one_line

if TYPE_CHECKING:
    import onnx_ir as ir

LIBRARIES = "VITDEPLOY_CUSTOM_OPS"
"""Environment variable: files of shared libraries, separated as in PATH. Every process of a command inherits it."""
_KNOWN = ("com.microsoft", "com.ms", "ai.onnx", "org.pytorch")
"""Domains of ONNX Runtime itself, which says on its own what it lacks of them."""
_MOST_NAMED = 3


def libraries() -> tuple[Path, ...]:
    """Return the libraries that the environment names."""
    return tuple(Path(name) for name in os.environ.get(LIBRARIES, "").split(os.pathsep) if name)


def register_libraries(settings: Any) -> None:
    """Let the sessions of ``onnxruntime.SessionOptions`` know the operators of all libraries.

    Raises:
        BackendError: One is missing, or ONNX Runtime cannot load it.
    """
    for library in libraries():
        if not library.is_file():
            raise BackendError(f"{LIBRARIES} names {str(library)!r}, which is no file")
        try:
            settings.register_custom_ops_library(str(library))
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise BackendError(
                f"{LIBRARIES} names {str(library)!r}, which ONNX Runtime cannot load: {one_line(error)}"
            ) from error


def remedy(message: str) -> str:
    """Return what to do about an operator that ONNX Runtime says it does not know, as the end of a sentence."""
    if "is not a registered function/op" not in message and "No Op registered for" not in message:
        return ""
    return f": {LIBRARIES} names the libraries that register operators of other domains"


def unknown_operators(model: ir.Model) -> str | None:
    """Return in words which operators of a graph have no definition, each with its first node; None where all have.

    A function of the model defines one. Operators of ONNX Runtime's own domains count as defined.
    """
    import onnx
    import onnx_ir as ir

    found: dict[str, str] = {}
    functions = {(function.domain, function.name) for function in model.functions.values()}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if (node.domain, node.op_type) in functions or node.domain.startswith(_KNOWN):
                continue
            if node.domain or not onnx.defs.has(node.op_type, ""):
                name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                found.setdefault(name, f"{name} (node {node.name or node.outputs[0].name or '?'!r})")
    if not found:
        return None
    named = list(found.values())[:_MOST_NAMED]
    more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
    return f"{', '.join(named)}{more}"
