"""What a runtime made of a quantized graph: which of its products really run in integers."""

from __future__ import annotations

from vitdeploy.records.base import Record


class FloatProduct(Record):
    """A product that the graph has in 8 bits and the runtime computes in floating point.

    ``kernel`` is what it runs as, such as ``Gemm fp32``; "" where the runtime's graph does not name it.
    """

    node: str
    kernel: str
    reason: str


class OperatorCensus(Record):
    """The products of a quantized graph, counted in the graph that a runtime executes.

    ``planned`` are the linears, convolutions and products of attention whose operands are 8-bit integers in the model,
    ``integer`` those of them that the runtime multiplies so; ``floating`` are the others. ``kernels`` counts all
    products by kernel and precision. ``conversions`` go between integers and floating point (QuantizeLinear, casts),
    ``reorders`` change the layout of memory.
    """

    runtime: str
    version: str
    planned: int
    integer: int
    floating: tuple[FloatProduct, ...] = ()
    kernels: dict[str, int] = {}
    conversions: int = 0
    reorders: int = 0
