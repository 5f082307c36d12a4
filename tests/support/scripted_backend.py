"""A backend that computes with ONNX Runtime and whose latencies follow from a script, so that searches are certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy import backends
from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.backends.null import NullBackend
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.sessions import Feed, Scope, Session, SessionOptions

NAME = "scripted"
Script = Callable[[str, tuple[int, ...]], float]
"""Type of a weight (``FLOAT``, ``FLOAT16``, ``INT8``) and its sizes → milliseconds."""


def float_or_integer(kind: str, sizes: tuple[int, ...]) -> float:
    """Integers take 0.4 ms per linear, FP32 takes 1, FP16 takes 2."""
    return {"INT8": 0.4, "FLOAT": 1.0, "FLOAT16": 2.0}[kind]


class ScriptedBackend(NullBackend):
    """Takes the place of a runtime and counts; after ``fails_after`` calls of ``time`` it is killed."""

    name = NAME

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Go back to the first script, and count from 0."""
        self.script: Script = float_or_integer
        self.opened = self.timed = 0
        self.fails_after: int | None = None

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> Any:
        assert isinstance(artifact, OnnxModel)
        model = artifact.load()
        self.opened += 1
        return ScriptedSession(open_graph(model, SessionOptions(threads=1, device="cpu")), self._cost(model), self)

    def _cost(self, model: ir.Model) -> float:
        weights = [_weight(node) for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")]
        return sum(
            self.script(str(weight.dtype.name), tuple(weight.shape.numpy())) for weight in weights if weight is not None
        )


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    value = node.inputs[1]
    assert value is not None
    producer = value.producer()
    while producer is not None and producer.op_type in ("DequantizeLinear", "Cast"):
        value = producer.inputs[0]
        assert value is not None
        producer = value.producer()
    return value.const_value


class ScriptedSession:
    """Runs a graph for real and takes the scripted time."""

    def __init__(self, session: Session, cost_ms: float, backend: ScriptedBackend) -> None:
        self._session, self._cost, self._backend = session, cost_ms, backend

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]:
        self._backend.timed += 1
        if self._backend.fails_after is not None and self._backend.timed > self._backend.fails_after:
            raise KeyboardInterrupt
        return np.full(iterations, self._cost)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@contextmanager
def scripted() -> Iterator[ScriptedBackend]:
    """Register the backend while the block runs."""
    backend = ScriptedBackend()
    backends.register_backend(NAME, lambda: backend)
    try:
        yield backend
    finally:
        del backends._registered[NAME]
        backends.get_backend.cache_clear()
