"""A vision transformer that reads digits without a training run: random blocks, and a head fitted by least squares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from present import present
from small_vit import CLASSES, PREPROCESS, TOKENS, WIDTH, small_vit

from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.preprocess import normalize
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.sessions import SessionOptions

RIDGE = 10.0


def run(model: ir.Model, images: NDArray[Any], name: str | None = None) -> NDArray[Any]:
    """Return the logits, or the tensor called ``name``."""
    if name is not None:
        model = model.clone()
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs[:] = [value]
    with open_graph(model, SessionOptions(threads=1)) as session:
        (result,) = session.run({"input": images}).values()
    return result


def digits(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return network inputs and labels of a split."""
    dataset = open_dataset(f"digits:{split}")
    return normalize(load_pixels(dataset, PREPROCESS), PREPROCESS), present(dataset.labels)


def readout_vit(depth: int = 2, change: Callable[[ir.Model], None] | None = None) -> ir.Model:
    """Return a graph of about 96 % top-1 on the digits' test split: all tokens are read, not their mean.

    ``change`` alters the random blocks in place before the head is fitted.
    """
    model = ir.serde.deserialize_model(small_vit(depth=depth))
    if change is not None:
        change(model)
    pool = next(node for node in model.graph if node.op_type == "ReduceMean")
    head = next(node for node in model.graph if node.op_type == "Gemm")
    tokens = present(pool.inputs[0])
    images, labels = digits("train")
    features = run(model, images, tokens.name).reshape(len(images), -1).astype(np.float64)
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    solution = np.linalg.solve(gram, features.T @ (10 * np.eye(CLASSES)[labels])).astype(np.float32)
    flat = ir.node(
        "Reshape", [tokens, _constant(model, "flat", np.array([0, TOKENS * WIDTH], np.int64))], name="flatten"
    )
    flat.outputs[0].name = "flattened"
    model.graph.insert_before(pool, flat)
    head.replace_input_with(0, flat.outputs[0])
    head.replace_input_with(1, _constant(model, "readout.weight", solution[:-1]))
    head.replace_input_with(2, _constant(model, "readout.bias", solution[-1]))
    model.graph.remove(pool, safe=True)
    for name in ("head.weight", "head.bias", "axis"):
        del model.graph.initializers[name]
    return model


def write_readout_vit(path: Path, depth: int = 2) -> OnnxModel:
    """Write it as an artifact with four golden digits, whose reference stands for PyTorch's logits."""
    model = readout_vit(depth)
    dataset = open_dataset("digits:validation", samples=4)
    pixels = load_pixels(dataset, PREPROCESS)
    outputs = run(model, normalize(pixels, PREPROCESS))
    spec = ModelSpec(family="vit", name="readout", arguments={"num_classes": CLASSES}, classes=dataset.classes)
    manifest = Manifest(kind="onnx", model=spec, preprocess=PREPROCESS)
    return write_onnx(path, model, manifest, Golden(pixels, outputs + np.float32(1e-3), outputs))


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value
