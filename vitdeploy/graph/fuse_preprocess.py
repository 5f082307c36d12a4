"""Put normalisation, and resizing where asked, into a graph: bytes go in, four times less to copy than float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.chain import Chain
from vitdeploy.graph.fuse_resize import append_resize, refuse_resize
from vitdeploy.records import Preprocess
from vitdeploy.records.preprocess import Frame, InputForm

_TO_FIRST = (0, 3, 1, 2)
_BGR = (2, 1, 0)
PREFIX = "preprocess"


def fuse_preprocess(model: ir.Model, spec: Preprocess, form: InputForm, frame: Frame | None = None) -> Preprocess:
    """Make a graph take pixels as uint8, in place: Cast, Transpose where channels come last, ·a + b per channel.

    With a ``frame``, whole images go in, which the graph resizes and crops before it normalises them
    (``fuse_resize.py``).

    a = scale / std and b = (offset − mean) / std in float32, so that the inputs of the rest differ from the look-up
    table of ``normalize`` by rounding alone. The Cast is the first node, because the parser of TensorRT-RTX takes a
    UInt8 input and no UInt8 Transpose.

    Args:
        model: A graph with one floating-point input, [N, C, H, W].
        spec: Its preprocessing.
        form: ``uint8-nhwc`` or ``uint8-nchw``.
        frame: (height, width) of the images that are resized, ``any``, or None for pixels at the model's size.
    Returns:
        The preprocessing of the graph as it is now.
    Raises:
        GraphError: The input is not of that kind, the graph takes bytes already, or what the preprocessing does with
            images cannot be put into a graph.
    """
    graph = model.graph
    fed = [value for value in graph.inputs if not value.is_initializer()]
    old = fed[0]
    floating = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    if len(fed) != 1 or old.dtype not in floating or old.shape is None or len(old.shape) != 4 or spec.is_fused:
        raise GraphError("the graph takes no normalised images, so there is no normalisation to put into it")
    if frame is not None:
        refuse_resize(spec, frame)
    sides: list[Any]
    batch, channels, *sides = old.shape
    last = form == "uint8-nhwc"
    name, dtype = str(old.name), old.dtype
    if frame is not None:
        sides = ["height", "width"] if frame == "any" else list(frame)
    planes = [batch, channels, *sides]
    shape = [batch, *sides, channels] if last else planes
    pixels = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    old.name = f"{name}_normalised"
    std = np.array(spec.std, np.float64)
    factors = spec.network_order(tuple(spec.scale / std))
    offsets = spec.network_order(tuple((spec.offset - np.array(spec.mean, np.float64)) / std))

    chain = Chain(graph, pixels, PREFIX)
    chain.append("Cast", shape, to=ir.DataType.FLOAT)
    if last:
        chain.append("Transpose", planes, perm=_TO_FIRST)
    if frame is not None:
        append_resize(chain, pixels, spec, frame, height_axis=1 if last else 2)
    planes = chain.shape
    if spec.channel_order == "bgr":
        chain.append("Gather", planes, chain.constant(np.array(_BGR, np.int64)), axis=1, dtype=ir.DataType.FLOAT)
    column = (1, len(factors), 1, 1)
    chain.append("Mul", planes, chain.constant(np.array(factors, np.float32).reshape(column)))
    chain.append("Add", planes, chain.constant(np.array(offsets, np.float32).reshape(column)))
    if dtype != ir.DataType.FLOAT:
        chain.append("Cast", planes, to=dtype)
    old.replace_all_uses_with(chain.value)
    graph.inputs[list(graph.inputs).index(old)] = pixels
    graph.insert_before(graph[0], chain.nodes)
    return spec.model_copy(update={"input": form, "frame": frame})
