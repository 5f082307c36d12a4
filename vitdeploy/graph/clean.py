"""The passes that every graph goes through once, in their order."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.artifacts import IR_VERSION
from vitdeploy.graph.fix_image_size import FixImageSize
from vitdeploy.graph.fuse_gelu import FuseGelu
from vitdeploy.graph.fuse_layer_norm import FuseLayerNorm
from vitdeploy.graph.inline_functions import InlineFunctions
from vitdeploy.graph.lower_attention import LowerAttention
from vitdeploy.graph.lower_einsum import LowerEinsum
from vitdeploy.graph.lower_fused_operators import LowerFusedOperators
from vitdeploy.graph.lower_opset import NEWEST, LowerOpset
from vitdeploy.graph.name_inputs_outputs import NameInputsOutputs
from vitdeploy.graph.name_nodes import NameNodes
from vitdeploy.graph.pad_tokens import PadTokens
from vitdeploy.graph.plain_gemms import PlainGemms
from vitdeploy.graph.raise_opset import RaiseOpset
from vitdeploy.graph.simplify import Simplify
from vitdeploy.graph.strip_metadata import StripMetadata

PRODUCER = "vitdeploy"


def clean(model: ir.Model, opset: int = NEWEST, image: tuple[int, int, int] | None = None) -> ir.Model:
    """Make a graph what every later stage expects, in place: small, named, sorted, and free of its origin.

    Raises:
        GraphError: It has more than one input or output, or cannot be expressed in ``opset``.
    """
    lower = LowerOpset(opset)
    for step in (
        InlineFunctions(),
        common.RemoveInitializersFromInputsPass(),
        FixImageSize(image),
        RaiseOpset(),
        LowerAttention(),
        LowerFusedOperators(),
        Simplify(),
        LowerEinsum(),
        PadTokens(),
        PlainGemms(),
        FuseLayerNorm(),
        FuseGelu(),
        common.RemoveUnusedNodesPass(),
        NameInputsOutputs(),
        NameNodes(),
        lower,
        StripMetadata(),
    ):
        step(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = PRODUCER, None
    model.graph.name = "main"
    return model
