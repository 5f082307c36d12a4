"""A linear classifier of digits as an ONNX graph, and scripted backends that compute it and take the scripted time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from present import present

from vitdeploy.artifacts import Artifact, Engine, OnnxModel, write_engine, write_onnx
from vitdeploy.backends.session import CheckedSession
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.preprocess import normalize
from vitdeploy.records import BuildInfo, Manifest, ModelSpec, Report, Row
from vitdeploy.sessions import Feed, Scope, SessionOptions, TensorSpec
from vitdeploy.stages.bench import BenchOptions

QUICK = BenchOptions(rounds=3, iterations=3, warmup=1, fill_s=0.0, processes=False, image_to_label=False)
PREPROCESS = present(open_dataset("digits").preprocess)
SPEC = ModelSpec(family="linear", name="digits-linear", arguments={"num_classes": 10}, classes=tuple("0123456789"))
TEXT = """<ir_version: 10, opset_import: ["": 20]>
linear (float[batch, 1, 8, 8] input) => (float[batch, CLASSES] logits)
<float[64, CLASSES] weight, float[CLASSES] bias> {
    shape = Constant<value = int64[2] {-1, 64}>()
    flat = Reshape(input, shape)
    product = MatMul(flat, weight)
    logits = Add(product, bias)
}"""


def fit() -> tuple[np.ndarray, np.ndarray]:
    """Return weights of a least-squares classifier of the training digits: about 93 % right on the test digits."""
    train = open_dataset("digits:train")
    images = normalize(load_pixels(train, PREPROCESS), PREPROCESS).reshape(len(train), 64)
    design = np.hstack([images, np.ones((len(train), 1), np.float32)])
    targets = 10 * np.eye(10, dtype=np.float32)[train.labels]
    solved = np.linalg.lstsq(design.T @ design + 3 * np.eye(65), design.T @ targets, rcond=None)[0]
    return solved[:-1].astype(np.float32), solved[-1].astype(np.float32)


WEIGHT, BIAS = fit()


def in_steps(weight: np.ndarray, levels: int) -> np.ndarray:
    step = np.abs(weight).max() / levels
    return (np.round(weight / step) * step).astype(np.float32)


def linear_graph(weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> ir.Model:
    model = ir.from_onnx_text(TEXT.replace("CLASSES", str(len(bias))))
    for name, array in (("weight", weight), ("bias", bias)):
        value = next(one for node in model.graph for one in node.inputs if one is not None and one.name == name)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        model.graph.register_initializer(value)
    return model


def linear_manifest(**fields: Any) -> Manifest:
    return Manifest(**{"kind": "onnx", "model": SPEC, "preprocess": PREPROCESS, **fields})


def write_linear(path: Path, weight: np.ndarray = WEIGHT, **fields: Any) -> OnnxModel:
    return write_onnx(path, linear_graph(weight), linear_manifest(**fields))


def linear_logits(images: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    return images.reshape(len(images), 64) @ weight + BIAS


class ScriptedSession(CheckedSession):
    """Computes the linear classifier in NumPy, and takes as long as its script says."""

    def __init__(
        self, backend: str, provider: str, weight: np.ndarray, call_ms: float, batch: int | None = None
    ) -> None:
        images = TensorSpec("input", np.dtype(np.float32), (batch, 1, 8, 8))
        super().__init__(backend, provider, [images], [TensorSpec("logits", np.dtype(np.float32), (batch, 10))])
        self.weight, self.call_ms = weight, call_ms

    def _run(self, arrays: Feed) -> dict[str, Any]:
        return {"logits": linear_logits(arrays["input"], self.weight)}

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]:
        batch = len(self._checked(feed)["input"])
        copies = 0.0 if scope == "device" else 0.05
        return np.full(iterations, self.call_ms * (0.9 + 0.1 * batch) + copies)

    def _release(self) -> None:
        pass


@dataclass
class ScriptedBackend:
    """A runtime whose answers the test chooses."""

    name: str
    graph_devices: tuple[str, ...] = ("cpu", "cuda")
    cannot: str | None = None
    missing: str | None = None
    call_ms: dict[str, float] = field(default_factory=dict)  # by precision, or by device for PyTorch
    fails: str | None = None
    weight: np.ndarray = field(default_factory=lambda: WEIGHT)
    batch: int | None = None
    opened: list[tuple[str, str]] = field(default_factory=list)

    def unavailable(self) -> str | None:
        return self.missing

    def can_run(self) -> str | None:
        return self.cannot

    def open(self, artifact: Artifact, options: SessionOptions) -> ScriptedSession:
        if self.fails is not None:
            raise RuntimeError(self.fails)
        self.opened.append((artifact.path.name, options.device))
        key = options.device if self.name == "pytorch" else artifact.manifest.precision
        provider = f"eager-{options.device}" if self.name == "pytorch" else self.name
        return ScriptedSession(self.name, provider, self.weight, self.call_ms.get(key, 1.0), self.batch)


def write_plan(path: Path, precision: str = "fp16", **build: Any) -> Engine:
    info = BuildInfo(**{"backend": "tensorrt-rtx", "version": "1.7", "batch": (1, 1, 1), "reason": "no GPU", **build})
    manifest = linear_manifest(kind="engine", precision=precision, target="tensorrt", build=info)
    return write_engine(path, f"plan {precision}".encode(), manifest)


def row_of(report: Report, name: str) -> Row:
    (row,) = [row for row in report.rows if row.name == name]
    return row
