"""Count which quantized products of a graph a runtime really computes in integers.

A runtime takes any Q/DQ graph, and computes what it has no integer kernel for from dequantized values, in FP32 and
without a word: the result is the same, the time is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from vitdeploy.graph.precisions import quantized_products
from vitdeploy.records import FloatProduct, OperatorCensus
from vitdeploy.sessions import Kernel

INTEGERS = ("int8", "uint8")
_GEMM = "product and bias became one Gemm, which has integers for int32 biases only"
_CONVOLUTION = "there is no integer convolution with an output in floating point"
_SIGNED = "its activation is signed and several nodes read it"
_OTHER = "the product was not joined with the DequantizeLinear of its operands"
_UNNAMED = "no kernel of the runtime's graph names it"


def take_census(model: ir.Model, kernels: Sequence[Kernel], runtime: str, version: str) -> OperatorCensus:
    """Return the census of a quantized graph and the kernels that a session has for it (``Session.kernels``)."""
    products = quantized_products(model)
    by_source: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for source in kernel.sources:
            by_source.setdefault(source, []).append(kernel)
    floating = []
    for node in products:
        found = _kernel_of(node, by_source)
        if found is None or found.precision not in INTEGERS:
            name = "" if found is None else f"{found.operator} {found.precision}"
            floating.append(FloatProduct(node=str(node.name), kernel=name, reason=_reason(node, found)))
    tally = Counter(f"{kernel.operator} {kernel.precision}" for kernel in kernels if kernel.role == "product")
    return OperatorCensus(
        runtime=runtime,
        version=version,
        planned=len(products),
        integer=len(products) - len(floating),
        floating=tuple(floating),
        kernels=dict(tally.most_common()),
        conversions=sum(kernel.role == "conversion" for kernel in kernels),
        reorders=sum(kernel.role == "reorder" for kernel in kernels),
    )


def _kernel_of(node: ir.Node, by_source: dict[str, list[Kernel]]) -> Kernel | None:
    """Return the kernel that computes a product: by the node's name, its extensions, or the value that it gives."""
    names = [name for name in (node.name, node.outputs[0].name) if name]
    exact = [kernel for name in names for kernel in by_source.get(name, ())]
    longer = [
        kernel
        for source, found in by_source.items()
        if node.name and source.startswith(f"{node.name}/")
        for kernel in found
    ]
    candidates = [kernel for kernel in (*exact, *longer) if kernel.role in ("product", "fusion")]
    return next((one for one in candidates if one.role == "product"), candidates[0] if candidates else None)


def _reason(node: ir.Node, kernel: Kernel | None) -> str:
    if kernel is None:
        return _UNNAMED
    if "Gemm" in kernel.operator:
        return _GEMM
    if node.op_type == "Conv":
        return _CONVOLUTION
    return _SIGNED if _shares_a_signed_activation(node) else _OTHER


def _shares_a_signed_activation(node: ir.Node) -> bool:
    for value in node.inputs[:2]:
        dequantize = value.producer() if value is not None else None
        stored = dequantize.inputs[0] if dequantize is not None else None
        if stored is not None and not stored.is_initializer() and stored.dtype == ir.DataType.INT8:
            readers = sum(len(reader.outputs[0].uses()) for reader in stored.consumers())
            if readers > 1:
                return True
    return False
