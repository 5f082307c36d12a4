"""Orthogonal matrices that spread a channel over all others, and constants that are multiplied by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.insert_qdq import new_initializer

Matrix = NDArray[np.float64]
_SEED = 2404


def rotation(width: int) -> Matrix:
    """Return an orthogonal matrix whose entries all have about the magnitude 1 / √width; equal for equal widths.

    A Hadamard matrix with random signs (Ashkboos et al. 2024, QuaRot, arXiv:2404.00456, section 3). Where the width is
    no power of two its odd factor has a Hartley matrix, whose entries are cos + sin.
    """
    odd = width // (width & -width)
    angles = 2 * math.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    found: Matrix = np.asarray((np.cos(angles) + np.sin(angles)) / math.sqrt(odd), np.float64)
    while len(found) < width:
        found = np.asarray(np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2), found), np.float64)
    signs = np.random.default_rng([_SEED, width]).choice([-1.0, 1.0], width)
    mixed: Matrix = found * signs
    return mixed


def rotation_that_keeps_means(width: int) -> Matrix:
    """Return such a matrix R with R·1 = 1, so that x·R has the mean and the variance of x.

    ``rotation`` takes u = 1 / √width to some v; one reflection takes v back to u (Householder), and changes the entries
    by about 2 / width only.
    """
    mixed = rotation(width)
    u = np.full(width, 1 / math.sqrt(width))
    normal = mixed @ u - u
    length = float(np.linalg.norm(normal))
    if length < 1e-12:
        return mixed
    normal /= length
    kept: Matrix = mixed - 2 * np.outer(normal, normal @ mixed)
    return kept


@dataclass(frozen=True)
class Turn:
    """A constant operand ``node.inputs[index]`` whose channels along ``axis`` get a ``factor`` each, and turn.

    Row b of ``positions`` [blocks, width] says where along the axis the channels of block b are.
    """

    node: ir.Node
    index: int
    axis: int
    positions: NDArray[np.intp]
    factor: NDArray[np.float64] | None = None

    def apply(self, graph: ir.Graph, matrix: Matrix) -> None:
        """Multiply the constant by the matrix, in place; other nodes that read it keep what they had."""
        old = self.node.inputs[self.index]
        assert old is not None
        assert old.const_value is not None
        array = np.moveaxis(old.const_value.numpy().astype(np.float64), self.axis, -1)
        if self.factor is not None:
            array = array * self.factor
        turned = np.ascontiguousarray(np.moveaxis(turn(array, self.positions, matrix), -1, self.axis), np.float32)
        replace_constant(graph, self.node, self.index, turned)


def turn(array: NDArray[np.floating], positions: NDArray[np.intp], matrix: Matrix) -> NDArray[np.float64]:
    """Return a copy of an array [..., C] in which each block of channels is multiplied by the matrix."""
    turned = array.astype(np.float64)
    turned[..., positions] = turned[..., positions] @ matrix
    return turned


def consecutive(size: int, width: int) -> NDArray[np.intp]:
    """Return the positions of blocks of ``width`` channels one behind the other."""
    return np.arange(size, dtype=np.intp).reshape(-1, width)


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32]) -> None:
    """Put an array in the place of an operand, which gets an initializer of its own where others read the old one."""
    old = node.inputs[index]
    assert old is not None
    if len(old.uses()) == 1:
        old.const_value, old.shape = ir.tensor(array, name=old.name), ir.Shape(array.shape)
        return
    name = f"{old.name}.turned"
    while name in graph.initializers:
        name += "_"
    node.replace_input_with(index, new_initializer(graph, name, array))
