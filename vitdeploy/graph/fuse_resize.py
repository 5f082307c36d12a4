"""Resize and crop in a graph: two products with matrices of the filter's weights, which every runtime has.

The antialiased filters of Pillow are separable and linear: columns · [h, H], rows · [W, w]. An ONNX Resize with
``antialias`` would be refused by TensorRT, and other runtimes differ in it; products and sums do not. Each pass is
rounded to whole numbers in 0…255 as Pillow's passes are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GraphError
from vitdeploy.graph.chain import Chain
from vitdeploy.preprocess.pixels import crop_start, resized_size
from vitdeploy.records import Preprocess
from vitdeploy.records.preprocess import Frame

FILTERS = ("bilinear", "bicubic")
CUBIC = -0.5
"""The parameter a of Pillow's bicubic filter (Keys, 1981, and no other library's −0.75)."""

Axis = Literal["height", "width"]


def refuse_resize(spec: Preprocess, frame: Frame) -> None:
    """Refuse preprocessing that no matrix can carry out.

    Raises:
        GraphError: Another filter, no resizing, or edges that are filled; the line says which.
    """
    if spec.interpolation not in FILTERS:
        raise GraphError(
            f"the preprocessing resizes with {spec.interpolation!r}, expected {' or '.join(FILTERS)}: leave out "
            "fuse_resize="
        )
    if spec.resize == "none":
        raise GraphError("the preprocessing resizes nothing, so there is no resizing to put into the graph")
    if frame == "any":
        covers = spec.resize == "squash" or (spec.resize == "shortest" and spec.crop == "center")
        if not covers or any(has < needs for has, needs in zip(spec.resized_to, spec.size, strict=True)):
            raise GraphError(
                f"resize {spec.resize!r} to {spec.resized_to} with crop {spec.crop!r} is not carried out in a graph "
                "for images of any size: name their size, as in fuse_resize=(480, 640)"
            )
        return
    height, width = frame
    resized = resized_size((width, height), spec)[::-1]
    if any(has < needs for has, needs in zip(resized, spec.size, strict=True)) or (
        spec.crop == "none" and resized != spec.size
    ):
        raise GraphError(
            f"images of {width}×{height} pixels become {resized[1]}×{resized[0]}, which does not give the input of "
            f"{spec.size[1]}×{spec.size[0]} without filling edges: name another size of images, or leave out "
            "fuse_resize="
        )


def append_resize(chain: Chain, pixels: ir.Value, spec: Preprocess, frame: Frame, height_axis: int) -> None:
    """Append the two passes to a chain that has planes [N, C, H, W] in float32.

    pixels: The graph's input, whose heights are its axis ``height_axis``, followed by the widths.
    """
    batch, channels, height, _ = chain.shape
    if frame == "any":
        across, down = _computed(chain, pixels, spec, height_axis)
    else:
        resized = resized_size(frame[::-1], spec)
        starts = [crop_start(have, need, spec) for have, need in zip(resized[::-1], spec.size, strict=True)]
        across = chain.constant(_weights(frame[1], resized[0], starts[1], spec.size[1], spec).T)
        down = chain.constant(_weights(frame[0], resized[1], starts[0], spec.size[0], spec))
    planes = [batch, channels, height, spec.size[1]]
    chain.append("MatMul", planes, across)
    _round(chain)
    chain.append("MatMul", [batch, channels, *spec.size], down, constant_first=True)
    _round(chain)


def _round(chain: Chain) -> None:
    """Round half up and clip, as Pillow does after each pass."""
    chain.append("Add", chain.shape, chain.constant(np.float32(0.5)))
    chain.append("Floor", chain.shape)
    chain.append("Clip", chain.shape, chain.constant(np.float32(0)), chain.constant(np.float32(255)))


def _weights(side: int, resized: int, start: int, count: int, spec: Preprocess) -> NDArray[np.float32]:
    """Return the weights of ``side`` pixels for each of ``count`` results from ``start`` on, [count, side]."""
    centres = 2 * np.arange(start, start + count)[:, None] + 1
    distance = np.abs((2 * np.arange(side) + 1) * resized - centres * side) / (2 * max(side, resized))
    if spec.interpolation == "bilinear":
        weights = np.maximum(1 - distance, 0)
    else:
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _computed(chain: Chain, pixels: ir.Value, spec: Preprocess, height_axis: int) -> tuple[ir.Value, ir.Value]:
    """Return the weights as values [W, w] and [h, H] that the graph computes of the size of its input.

    Sizes and places are whole numbers, as Pillow's are before its one division, so that nothing is lost by float32.
    """
    make = chain.make

    def whole(value: int) -> ir.Value:
        return chain.constant(np.array([value], np.int64))

    sides = {
        axis: make("Shape", pixels, start=height_axis + place, end=height_axis + place + 1, dtype=ir.DataType.INT64)
        for place, axis in enumerate(("height", "width"))
    }
    shorter = make("Min", sides["height"], sides["width"])
    two, one = whole(2), whole(1)

    def matrix(axis: Axis, place: int) -> ir.Value:
        side, count = sides[axis], spec.size[place]
        resized = whole(spec.resized_to[place])
        if spec.resize == "shortest":
            resized = make("Div", make("Mul", side, resized), shorter)
        start = make("Div", make("Sub", resized, whole(count)), two)
        if spec.crop_offset == "round":  # half a pixel goes to the even number: (d + d // 2 % 2) // 2
            odd = make("Sub", start, make("Mul", make("Div", start, two), two))
            start = make("Div", make("Add", make("Sub", resized, whole(count)), odd), two)
        numbers = np.arange(count, dtype=np.int64)
        results = chain.constant(numbers[:, None] if axis == "height" else numbers[None])
        limit = make("Squeeze", side, whole(0))
        points = make("Range", chain.constant(np.int64(0)), limit, chain.constant(np.int64(1)))
        if axis == "width":
            points = make("Unsqueeze", points, one)
        centres = make("Add", make("Mul", make("Add", results, start), two), one)
        points = make("Add", make("Mul", points, two), one)
        apart = make("Abs", make("Sub", make("Mul", points, resized), make("Mul", centres, side)))
        scale = make("Mul", make("Max", side, resized), two)
        distance = make("Div", *(make("Cast", one, to=ir.DataType.FLOAT) for one in (apart, scale)))
        weights = _filter(chain, distance, spec)
        axes = whole(1 if axis == "height" else 0)
        total = make("ReduceSum", weights, axes, keepdims=1, dtype=ir.DataType.FLOAT)
        return make("Div", weights, total)

    return matrix("width", 1), matrix("height", 0)


def _filter(chain: Chain, distance: ir.Value, spec: Preprocess) -> ir.Value:
    def number(value: float) -> ir.Value:
        return chain.constant(np.float32(value))

    make = chain.make
    if spec.interpolation == "bilinear":
        return make("Max", make("Sub", number(1), distance), number(0))
    near = make("Sub", make("Mul", distance, number(CUBIC + 2)), number(CUBIC + 3))
    near = make("Add", make("Mul", near, make("Mul", distance, distance)), number(1))
    far = make("Add", make("Mul", make("Sub", distance, number(5)), distance), number(8))
    far = make("Mul", make("Sub", make("Mul", far, distance), number(4)), number(CUBIC))
    outer = make("Where", make("Less", distance, number(2)), far, number(0))
    return make("Where", make("Less", distance, number(1)), near, outer)
