"""What a legal graph is: what every backend builds well, and what it chokes on or slows down for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.name_inputs_outputs import BATCH, INPUT, OUTPUT

FORBIDDEN: dict[str, str] = {
    "Shape": "computes sizes at run time; the batch should be the -1 of a Reshape and every other size a constant",
    "Size": "computes sizes at run time",
    "ConstantOfShape": "computes sizes at run time",
    "Range": "computes sizes at run time",
    "Expand": "copies a constant once per image; Pad and Add put a token in front without it",
    "If": "branches at run time, which keeps TensorRT from fusing across it",
    "Loop": "loops at run time, which keeps TensorRT from fusing across it",
    "Scan": "loops at run time, which keeps TensorRT from fusing across it",
    "Resize": "interpolates at run time; position embeddings are resized once, when weights are loaded",
    "Einsum": "is slower than the MatMul that it stands for, and TensorRT takes it in floating point only",
    "ScatterND": "writes into slices; Concat does the same and fuses",
    "ScatterElements": "writes into slices; Concat does the same and fuses",
    "SequenceAt": "uses sequences, which TensorRT refuses",
    "SplitToSequence": "uses sequences, which TensorRT refuses",
    "NonZero": "has an output whose size depends on the data",
    "Col2Im": "is refused by TensorRT",
}


@dataclass(frozen=True)
class Finding:
    """One departure from a legal graph: which operator or place, how often, and why it matters."""

    subject: str
    count: int
    consequence: str

    def __str__(self) -> str:
        times = f"{self.count} × " if self.count > 1 else ""
        return f"{times}{self.subject} {self.consequence}"


def findings(model: ir.Model) -> list[Finding]:
    """Return how a graph departs from what export and adoption aim for; empty for a legal one.

    Legal: operators of the ONNX domain only, none of ``FORBIDDEN``, no functions or subgraphs, topologically sorted,
    unique node names, one input ``input``, float32 or bytes, with the dimension ``batch`` and one output ``logits``.
    """
    counts = Counter(node.op_type for node in model.graph if node.domain == "")
    found = [Finding(op, counts[op], consequence) for op, consequence in FORBIDDEN.items() if counts[op]]
    foreign = Counter(f"{node.domain}::{node.op_type}" for node in model.graph if node.domain != "")
    found += [Finding(op, count, _consequence(op)) for op, count in sorted(foreign.items())]
    if model.functions:
        found.append(Finding("function", len(model.functions), "hides its nodes from the passes"))
    return found + _structure(model.graph)


def _consequence(op: str) -> str:
    if op.startswith("com.microsoft.nchwc::"):
        return (
            "is laid out for the kind of CPU on which ONNX Runtime wrote the file, and may run on no other: write it "
            "with an optimization level below 99"
        )
    return "is no operator of ONNX: it stays in high precision, and runtimes other than ONNX Runtime refuse it"


def _structure(graph: ir.Graph) -> list[Finding]:
    found = []
    names = Counter(node.name for node in graph)
    repeated = sum(count for name, count in names.items() if count > 1 or not name)
    if repeated:
        found.append(Finding("node", repeated, "has no name of its own, so no plan can address it"))
    unsorted = count_unsorted(graph)
    if unsorted:
        found.append(Finding("node", unsorted, "comes before a node that feeds it, which TensorRT refuses"))
    if [value.name for value in graph.inputs] != [INPUT] or [value.name for value in graph.outputs] != [OUTPUT]:
        found.append(Finding("input or output", 1, f"is not the one {INPUT!r} and the one {OUTPUT!r}"))
    elif graph.inputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.UINT8):
        found.append(Finding("input", 1, f"is {graph.inputs[0].dtype}, expected FLOAT or UINT8"))
    elif not graph.inputs[0].shape or str(graph.inputs[0].shape[0]) != BATCH:
        found.append(Finding("input", 1, f"has no dynamic dimension {BATCH!r}"))
    return found


def count_unsorted(graph: ir.Graph) -> int:
    """Return how many nodes read a value that a later node makes."""
    defined = set(graph.inputs) | set(graph.initializers.values())
    unsorted = 0
    for node in graph:
        if any(value is not None and value not in defined and value.producer() is not None for value in node.inputs):
            unsorted += 1
        defined.update(node.outputs)
    return unsorted
