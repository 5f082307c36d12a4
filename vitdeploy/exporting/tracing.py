"""From a PyTorch module to a clean ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GraphError, ModelError
from vitdeploy.graph.clean import clean
from vitdeploy.graph.lower_opset import NEWEST
from vitdeploy.graph.name_inputs_outputs import BATCH
from vitdeploy.graph.quiet import quiet
from vitdeploy.text import one_line

if TYPE_CHECKING:
    from torch import nn

TRACED_BATCH = 2
"""Of one image torch.export would take the batch for a constant."""


def trace(module: nn.Module, images: NDArray[np.float32], origin: str, *, opset: int = NEWEST) -> ir.Model:
    """Return the module's graph with a dynamic batch, its tensors still those of the module.

    torch.export without the fallbacks of ``torch.onnx.export``, which can give a graph of the traced batch only, and
    without its optimizer, which deletes small constants (see ``RemoveNoOps``).

    Args:
        module: In evaluation mode, on the CPU.
        images: [2, C, H, W] normalised.
        origin: What an error calls the model.
        opset: 17 to 20; the graph is made for 20 and lowered.
    Raises:
        ModelError: torch.export cannot trace the module for every batch.
        GraphError: The graph has more than one input or output, or cannot be lowered.
    """
    import torch

    with warnings.catch_warnings(), quiet(), _plain_attention(module), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch and the models: no news to whoever exports
        try:
            dimensions = ({0: torch.export.Dim(BATCH)},)
            program = torch.export.export(module, (torch.from_numpy(images),), dynamic_shapes=dimensions, strict=False)
        except Exception as error:  # torch.export raises from every layer of the compiler
            raise ModelError(
                f"{origin} cannot be traced with a dynamic batch: {one_line(error.__cause__ or error)}"
            ) from error
        try:
            exported = torch.onnx.export(program, dynamo=True, opset_version=NEWEST, optimize=False, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            raise GraphError(
                f"{origin} has an operation that ONNX lacks: {one_line(error.__cause__ or error)}"
            ) from error
    assert exported is not None
    model: ir.Model = exported.model
    return clean(model, opset)


@contextmanager
def _plain_attention(module: nn.Module) -> Iterator[None]:
    """Let timm's attention multiply q, k and v in the open: fused, the scale would be split over q and k."""
    fused = [child for child in module.modules() if getattr(child, "fused_attn", False)]
    for child in fused:
        child.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for child in fused:
            child.fused_attn = True  # type: ignore[assignment]
