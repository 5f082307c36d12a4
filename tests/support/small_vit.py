"""A small vision transformer as an ONNX graph in each precision, written by hand so that no test here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.preprocess import normalize
from vitdeploy.records import Manifest, ModelSpec, Precision, Preprocess

PREPROCESS = Preprocess(size=(8, 8), channels=1, resize="none", crop="none", mean=(0.5,), std=(0.25,), source="test")
CLASSES, WIDTH, HEADS, PATCH, IMAGE = 10, 32, 2, 2, 8
TOKENS = (IMAGE // PATCH) ** 2


class Graph:
    """Nodes and weights of a graph under construction; ``high`` is the type of everything that is not quantized."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.high = np.float32 if precision == "fp32" else np.float16
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(7)

    def weight(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, name: str, *shape: int) -> str:
        return self.weight(name, (self.random.standard_normal(shape) * 0.2).astype(self.high))

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        name = f"n{len(self.nodes)}.{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs) or [name], name=name, **attributes))
        return self.nodes[-1].output[0]

    def quantized(self, value: str, name: str) -> str:
        """Q/DQ around an activation."""
        if self.precision not in ("int8", "fp8"):
            return value
        scale = self.weight(f"{name}.scale", self.high(0.05))
        zero = self.zero(f"{name}.zero")
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, scale, zero]), scale, zero])

    def zero(self, name: str) -> str:
        kind = TensorProto.INT8 if self.precision == "int8" else TensorProto.FLOAT8E4M3FN
        self.weights.append(helper.make_tensor(name, kind, [], [0]))
        return name

    def linear(self, value: str, name: str, inputs: int, outputs: int) -> str:
        value = self.quantized(value, f"{name}.input")
        if self.precision == "int8":
            weight = self.weight(f"{name}.q", self.random.integers(-127, 128, (inputs, outputs), np.int8))
            scale = self.weight(f"{name}.scale", np.full(outputs, 0.003, self.high))
            zero = self.weight(f"{name}.zero", np.zeros(outputs, np.int8))
            weight = self.node("DequantizeLinear", [weight, scale, zero], axis=1)
        elif self.precision == "fp8":
            values = self.random.standard_normal(inputs * outputs) * 50
            self.weights.append(
                helper.make_tensor(f"{name}.q", TensorProto.FLOAT8E4M3FN, [inputs, outputs], values.tolist())
            )
            scale = self.weight(f"{name}.scale", self.high(0.004))
            weight = self.node("DequantizeLinear", [f"{name}.q", scale, self.zero(f"{name}.zero")])
        else:
            weight = self.normal(f"{name}.weight", inputs, outputs)
        return self.node("Add", [self.node("MatMul", [value, weight]), self.normal(f"{name}.bias", outputs)])

    def norm(self, value: str, name: str) -> str:
        gain, bias = np.ones(WIDTH, self.high), np.zeros(WIDTH, self.high)
        inputs = [value, self.weight(f"{name}.weight", gain), self.weight(f"{name}.bias", bias)]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=1e-6)

    def attention(self, value: str, name: str) -> str:
        packed = self.linear(self.norm(value, f"{name}.norm"), f"{name}.qkv", WIDTH, 3 * WIDTH)
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        self.node("Split", [packed], parts, axis=-1, num_outputs=3)
        shape = self.weight(f"{name}.heads", np.array([0, TOKENS, HEADS, WIDTH // HEADS], np.int64))
        query, key, held = (
            self.node("Transpose", [self.node("Reshape", [part, shape])], perm=perm)
            for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scale = self.weight(f"{name}.scale", self.high((WIDTH // HEADS) ** -0.5))
        scores = self.node("MatMul", [self.node("Mul", [query, scale]), key])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), held])
        joined = self.weight(f"{name}.joined", np.array([0, TOKENS, WIDTH], np.int64))
        mixed = self.node("Reshape", [self.node("Transpose", [mixed], perm=[0, 2, 1, 3]), joined])
        return self.node("Add", [value, self.linear(mixed, f"{name}.proj", WIDTH, WIDTH)])

    def mlp(self, value: str, name: str) -> str:
        hidden = self.node("Gelu", [self.linear(self.norm(value, f"{name}.norm"), f"{name}.fc1", WIDTH, 2 * WIDTH)])
        return self.node("Add", [value, self.linear(hidden, f"{name}.fc2", 2 * WIDTH, WIDTH)])


def small_vit(precision: Precision = "fp32", *, depth: int = 2, batch: int | str = "batch") -> onnx.ModelProto:
    """Return a ViT for [batch, 1, 8, 8] with ten classes; the same weights every time."""
    graph = Graph(precision)
    half = precision != "fp32"
    value = graph.node("Cast", ["input"], to=TensorProto.FLOAT16) if half else "input"
    kernel = graph.normal("patch.weight", WIDTH, 1, PATCH, PATCH)
    value = graph.node("Conv", [value, kernel, graph.normal("patch.bias", WIDTH)], strides=[PATCH] * 2)
    value = graph.node("Reshape", [value, graph.weight("tokens", np.array([0, WIDTH, TOKENS], np.int64))])
    value = graph.node("Transpose", [value], perm=[0, 2, 1])
    value = graph.node("Add", [value, graph.normal("position", 1, TOKENS, WIDTH)])
    for index in range(depth):
        value = graph.attention(value, f"blocks.{index}.attn")
        value = graph.mlp(value, f"blocks.{index}.mlp")
    value = graph.node("ReduceMean", [graph.norm(value, "norm"), graph.weight("axis", np.array([1]))], keepdims=0)
    head = [value, graph.normal("head.weight", WIDTH, CLASSES), graph.normal("head.bias", CLASSES)]
    if half:
        graph.node("Cast", [graph.node("Gemm", head)], ["logits"], to=TensorProto.FLOAT)
    else:
        graph.node("Gemm", head, ["logits"])
    shapes = {"input": [batch, 1, IMAGE, IMAGE], "logits": [batch, CLASSES]}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    body = helper.make_graph(graph.nodes, "vit", [ends["input"]], [ends["logits"]], graph.weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_small_vit(path: Path, precision: Precision = "fp32", **arguments: Any) -> OnnxModel:
    """Write the graph as an artifact with golden samples; FP8 has none, as ONNX Runtime does not run it on a CPU."""
    return write_graph(path, small_vit(precision, **arguments), precision, golden=precision != "fp8")


def write_graph(path: Path, proto: onnx.ModelProto, precision: Precision = "fp32", *, golden: bool = True) -> OnnxModel:
    """Write any graph of one image input as an artifact."""
    samples = golden_of(proto) if golden else None
    spec = ModelSpec(family="vit", name="small", arguments={"num_classes": CLASSES})
    manifest = Manifest(kind="onnx", model=spec, preprocess=PREPROCESS, precision=precision)
    return write_onnx(path, ir.serde.deserialize_model(proto), manifest, samples)


def golden_of(proto: onnx.ModelProto) -> Golden:
    pixels = np.random.default_rng(3).integers(0, 256, (3, IMAGE, IMAGE, 1), np.uint8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    images = normalize(pixels, PREPROCESS)
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else len(images)
    padded = np.concatenate([images, images])[: -(-len(images) // step) * step]
    parts = [session.run(None, {"input": padded[i : i + step]})[0] for i in range(0, len(images), step)]
    outputs = np.concatenate(parts)[: len(images)]
    return Golden(pixels, outputs, outputs)


def images(batch: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a batch of inputs."""
    return np.random.default_rng(seed).standard_normal((batch, 1, IMAGE, IMAGE)).astype(np.float32)
