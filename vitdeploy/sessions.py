"""The protocols between algorithms and runtimes: a ``Session`` runs a graph, a ``Backend`` builds and opens.

Calibration, sensitivity and measuring are handed an ``Opener`` or open sessions; they never import a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.artifacts import Artifact, Engine, OnnxModel
    from vitdeploy.records import Examination

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of an input or output; a dynamic dimension is None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


Role = Literal["product", "fusion", "conversion", "reorder", "other"]


@dataclass(frozen=True)
class Kernel:
    """One node of the graph that a runtime made of a model.

    ``operator`` is what the runtime calls it, ``precision`` what it computes in. A ``product`` multiplies matrices, a
    ``fusion`` may have products in it, a ``conversion`` goes between types, a ``reorder`` changes the layout of memory.
    ``sources`` name nodes and values of the model that went into it.
    """

    operator: str
    precision: str
    role: Role
    sources: tuple[str, ...]


@dataclass(frozen=True)
class LayerTime:
    """One layer of the graph that a runtime executes, and the milliseconds that it took in each profiled call.

    ``ms`` has one value, their mean, where the runtime keeps no more. Its other fields are as those of ``Kernel``.
    """

    name: str
    operator: str
    precision: str
    sources: tuple[str, ...]
    ms: NDArray[np.float64]


@dataclass(frozen=True)
class LayerTimes:
    """What a runtime's own profiler saw: its layers in the order in which they ran, and the whole calls, [calls]."""

    layers: tuple[LayerTime, ...]
    call_ms: NDArray[np.float64]


class Session(Protocol):
    """An opened graph, a context manager.

    ``run`` returns arrays that the caller owns. ``time`` returns milliseconds per call, synchronised with the device,
    after ``warmup`` calls that are not counted; ``scope='device'`` leaves copies to and from the device out (on a CPU
    there are none). ``provider`` names what executes, ``notes`` say what a reader of its numbers has to know.
    ``inspector_json`` is TensorRT's account of an engine's layers, None where there is no engine. ``enqueue_ms`` is the
    host's time per launch at a batch size, ``launch_mode`` how it is launched; None where nothing is launched on a GPU.
    ``kernels`` are the nodes of the graph that the runtime executes, None where it does not tell. ``layer_times`` are
    of calls of their own, in a session beside this one whose profiler is on; None where the runtime has none.
    ``throughput`` is images per second with several contexts at work at once, None where a runtime has none.
    ``examination`` is what was found at the first open of an engine that could not be checked when it was built.
    """

    @property
    def provider(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def examination(self) -> Examination | None: ...
    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def run(self, feed: Feed) -> dict[str, NDArray[Any]]: ...
    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]: ...
    def inspector_json(self) -> str | None: ...
    def kernels(self) -> tuple[Kernel, ...] | None: ...
    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes | None: ...
    def throughput(self, feed: Feed, *, streams: int, seconds: float, scope: Scope = "device") -> float | None: ...
    def enqueue_ms(self, batch: int) -> float | None: ...
    def launch_mode(self, batch: int) -> LaunchMode | None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Session: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Scope = Literal["device", "end_to_end"]
LaunchMode = Literal["cuda-graph", "stream"]


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs.

    ``threads`` are of the CPU, 0: all cores. ``cuda_graph`` records an engine's launch once per batch size and
    replays it, where the engine can be recorded. ``cpu_fallback`` lets a provider on a GPU leave nodes to the CPU.
    ``cache`` keeps what TensorRT-RTX compiles at load for the next process.
    ``pinning`` says whether each thread of the CPU stays on a core of its own, ``spinning`` whether a thread that waits
    within a call goes on looking for work instead of sleeping; None is what the runtime does by itself. A runtime that
    has no such setting refuses it (``THREAD_SETTINGS``).
    """

    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    provider: str | None = None
    tf32: bool = False
    cuda_graph: bool = True
    cpu_fallback: bool = False
    cache: bool = True
    pinning: bool | None = None
    spinning: bool | None = None


ThreadSetting = Literal["pinning", "spinning"]
THREAD_SETTINGS: tuple[ThreadSetting, ...] = ("pinning", "spinning")
"""Fields of ``SessionOptions`` that some runtimes have on the CPU, as their ``thread_settings`` say."""


BatchRange = tuple[int, int, int]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
ProfilingVerbosity = Literal["detailed", "layer-names", "none"]


@dataclass(frozen=True)
class BuildTarget:
    """What an engine is built for.

    Args:
        batch: (min, opt, max) of one profile, or several such; equal numbers make a static profile.
        compute_capabilities: Such as ``("8.9",)``, GPUs that are not here (TensorRT-RTX only); empty means the GPU of
            this machine, or, with TensorRT-RTX and no GPU, the backend's default list.
        workspace_bytes: Scratch memory that one kernel may use, while building and while running.
        tf32: Lets FP32 layers use TF32.
        optimization_level: 0 (fastest build) to 5 (longest search); None is the library's own, 3.
        hardware_compatibility: GPUs that the engine runs on beside the one that builds it.
        version_compatible: A newer TensorRT, or its lean runtime, can run the engine; no host code is embedded in it.
        profiling: ``detailed`` lets precision by layer be read back; ``layer-names`` reveals less.
        refit: Weights can be replaced later.
        strip: Weights are left out; they come from the ONNX model when the engine is opened.
        dla_core: Number of the deep-learning accelerator to run on, where the board has one.
        timing_cache: Kernel timings of earlier builds: ``kept`` in the cache folder, ``off``, or a file.
    """

    batch: BatchRange | tuple[BatchRange, ...] = (1, 1, 1)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    tf32: bool = False
    optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    profiling: ProfilingVerbosity = "detailed"
    refit: bool = False
    strip: bool = False
    dla_core: int | None = None
    timing_cache: Path | Literal["kept", "off"] = "kept"

    @property
    def profiles(self) -> tuple[BatchRange, ...]:
        """(min, opt, max) of every profile."""
        several = not self.batch or isinstance(self.batch[0], tuple)
        return cast(tuple[BatchRange, ...], self.batch if several else (self.batch,))


def batch_range(value: int | str | Sequence[int]) -> BatchRange:
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


def batch_profiles(values: int | str | Sequence[int | str | Sequence[int]]) -> tuple[BatchRange, ...]:
    """Return the profiles of one or several batch ranges; a text may hold several, with commas between them.

    Raises:
        UsageError: One is no batch range, or comes twice.
    """
    several = [values] if isinstance(values, int | str) else values
    parts = [part for value in several for part in (value.split(",") if isinstance(value, str) else [value])]
    found = [batch_range(part.strip() if isinstance(part, str) else part) for part in parts]
    if not found:
        raise UsageError("there is no batch size, expected at least one")
    for one in found:
        if found.count(one) > 1:
            raise UsageError(f"the batch range {':'.join(map(str, one))} is given twice: name each profile once")
    return tuple(found)


class Backend(Protocol):
    """One runtime. ``unavailable`` is None where it can be used, else why not and the command that fixes it.

    ``graph_devices`` are those on which it runs ONNX files as they are; empty for one that runs engines or checkpoints.
    One that can pin threads of the CPU, or say whether they spin, names these settings in ``thread_settings``.
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
