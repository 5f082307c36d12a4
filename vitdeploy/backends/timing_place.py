"""Where latency counts, ``BACKEND[:PROVIDER]``: opens graphs that are in memory there, and builds engines for it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy import environment
from vitdeploy.artifacts import write_onnx
from vitdeploy.backends import get_backend, names
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.records import CpuIntegers, Manifest, Precision, Target
from vitdeploy.records.report import Device, backend_title, executing_target
from vitdeploy.sessions import BuildTarget, Opener, Session, SessionOptions

if TYPE_CHECKING:
    import onnx_ir as ir

UNFIT = ("pytorch", "null", "tensorrt-lean")
"""They run no graph, compute nothing, or build nothing."""
GPU_PROVIDERS = ("cuda", "tensorrt", "CUDAExecutionProvider", "TensorrtExecutionProvider")


@dataclass(frozen=True)
class TimingPlace:
    """A runtime on a device of this machine; without a provider ONNX Runtime's is the CPU."""

    backend: str
    provider: str | None = None

    @classmethod
    def parse(cls, text: str) -> TimingPlace:
        """Read ``onnxruntime``, ``onnxruntime:cuda``, ``openvino``, ``tensorrt`` or the like.

        Raises:
            UsageError: There is no such runtime, or it times no graph.
        """
        backend, _, provider = text.partition(":")
        known = [name for name in names() if name not in UNFIT]
        if backend not in known or (provider and backend != "onnxruntime"):
            raise UsageError(
                f"there is no runtime for time_on={text!r}, expected one of {', '.join(known)}, or onnxruntime with a "
                f"provider such as 'onnxruntime:cuda'"
            )
        return cls(backend, provider or None)

    @property
    def device(self) -> Device:
        """The device on which it runs."""
        if self.backend == "onnxruntime":
            return "cuda" if self.provider in GPU_PROVIDERS else "cpu"
        return next(iter(get_backend(self.backend).graph_devices), "cuda")

    @property
    def builds_engines(self) -> bool:
        """Return whether it runs engines, not graphs."""
        return not get_backend(self.backend).graph_devices

    @property
    def target(self) -> Target | None:
        """The target that its graphs are made for; None where the runtime is not known to have one."""
        return executing_target(self.backend, self.provider)

    @property
    def title(self) -> str:
        """In words: ``ONNX Runtime on the CPU``."""
        return f"{backend_title(self.backend)} on the {'GPU' if self.device == 'cuda' else 'CPU'}"

    @property
    def identity(self) -> dict[str, str | None]:
        """What a latency depends on beside the graph: runtime, version, device."""
        machine = environment.current()
        device = machine.gpu if self.device == "cuda" else machine.cpu
        version = get_backend(self.backend).version()
        return {"backend": self.backend, "provider": self.provider, "version": version, "device": device}

    def require(self) -> None:
        """Raise where this machine cannot run it.

        Raises:
            BackendError: The runtime or the device is absent.
        """
        backend = get_backend(self.backend)
        reason = backend.unavailable() or backend.can_run()
        if reason is not None:
            raise BackendError(f"nothing can be timed on {self.backend!r} here: {reason}")
        if self.backend == "onnxruntime":
            import onnxruntime

            from vitdeploy.backends.onnxruntime import choose_provider

            choose_provider(self._options(0), onnxruntime.get_available_providers())

    def opener(self, manifest: Manifest, batch: int, threads: int = 0, processor: CpuIntegers = "any") -> Opener:
        """Return what opens a graph; an engine is built for this batch alone.

        Args:
            manifest: Of the FP32 graph: what goes in and comes out.
            batch: The size at which latency counts.
            threads: Of the CPU, 0 for all.
            processor: The processors that integers in the graphs suit.
        """
        backend, options = get_backend(self.backend), self._options(threads)

        def open_there(model: ir.Model) -> Session:
            if self.backend == "onnxruntime":
                from vitdeploy.backends.onnxruntime import open_graph, saturates

                return open_graph(model, options, exact_integers=saturates(processor))
            described = manifest.model_copy(update={"precision": _precision(model), "parents": {}, "checks": ()})
            with tempfile.TemporaryDirectory(prefix="vitdeploy-", ignore_cleanup_errors=True) as folder:
                written = write_onnx(Path(folder) / "graph.onnx", model, described)
                if backend.graph_devices:
                    return backend.open(written, options)
                target = BuildTarget(batch=(batch, batch, batch))
                return backend.open(backend.build(written, Path(folder) / "graph.engine", target), options)

        return open_there

    def _options(self, threads: int) -> SessionOptions:
        provider = self.provider or ("cpu" if self.backend == "onnxruntime" else None)
        return SessionOptions(threads=threads, device=self.device, provider=provider)


def _precision(model: ir.Model) -> Precision:
    import onnx_ir as ir

    types = {value.dtype for value in model.graph.initializers.values()}
    if ir.DataType.FLOAT8E4M3FN in types:
        return "fp8"
    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        return "int8"
    return "fp16" if ir.DataType.FLOAT16 in types else "fp32"
