"""The protocols between algorithms and runtimes: a ``Session`` runs a graph, a ``Backend`` builds and opens.

Calibration, sensitivity and measuring are handed an ``Opener`` or open sessions; they never import a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.artifacts import Artifact, Engine, OnnxModel

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of an input or output; a dynamic dimension is None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Session(Protocol):
    """An opened graph, a context manager.

    ``run`` returns arrays that the caller owns. ``time`` returns milliseconds per call, synchronised with the device,
    after ``warmup`` calls that are not counted; ``scope='device'`` leaves copies to and from the device out (on a CPU
    there are none). ``provider`` names what executes. ``inspector_json`` is TensorRT's account of an engine's layers,
    None where there is no engine.
    """

    @property
    def provider(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def run(self, feed: Feed) -> dict[str, NDArray[Any]]: ...
    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]: ...
    def inspector_json(self) -> str | None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Session: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Scope = Literal["device", "end_to_end"]


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs: CPU threads (0: all cores), device, execution provider, TF32, CUDA graph."""

    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    provider: str | None = None
    tf32: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True)
class BuildTarget:
    """What an engine is built for.

    ``batch`` is (min, opt, max); equal numbers make a static profile. ``compute_capabilities`` such as ``("8.9",)``
    name GPUs that are not here (TensorRT-RTX only); empty means the GPU of this machine, or, with TensorRT-RTX
    and no GPU, the backend's default list.
    """

    batch: tuple[int, int, int] = (1, 1, 1)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    tf32: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def batch_range(value: int | str | Sequence[int]) -> tuple[int, int, int]:
    """Return (min, opt, max) of a batch range: a number, ``MIN:OPT:MAX``, or one or three numbers.

    Raises:
        UsageError: It is none of these, or the numbers do not ascend.
    """
    parts = str(value).split(":") if isinstance(value, int | str) else [str(part) for part in value]
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"batch is {value!r}, expected a number such as 1, or MIN:OPT:MAX such as 1:8:32")
    low, best, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if not low <= best <= high:
        raise UsageError(f"batch is {low}:{best}:{high}, expected MIN <= OPT <= MAX")
    return low, best, high


class Backend(Protocol):
    """One runtime. ``unavailable`` is None where it can be used, else why not and the command that fixes it.

    ``graph_devices`` are those on which it runs ONNX files as they are; empty for one that runs engines or checkpoints.
    """

    name: str
    graph_devices: tuple[Literal["cpu", "cuda"], ...]

    def unavailable(self) -> str | None: ...
    def can_run(self) -> str | None:
        """Return None where artifacts can be executed on this machine, else the reason in words (no GPU …)."""
        ...

    def version(self) -> str: ...
    def build(self, model: OnnxModel, path: Any, target: BuildTarget, progress: Progress = SILENT) -> Engine: ...
    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> Session: ...


Opener = Callable[["ir.Model"], Session]
"""Opens an in-memory graph (calibration graphs with extra outputs, candidates of a search)."""
