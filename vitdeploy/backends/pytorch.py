"""PyTorch: a checkpoint or a module, eager or compiled. The baseline of every report."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Checkpoint, OnnxModel
from vitdeploy.backends.session import Arrays, CheckedSession, wall_clock_ms
from vitdeploy.backends.threads import refuse_thread_settings
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, Feed, Scope, SessionOptions, TensorSpec
from vitdeploy.text import one_line

Mode = Literal["eager", "compile", "autocast-fp16", "autocast-bf16"]
MODES: tuple[Mode, ...] = ("eager", "compile", "autocast-fp16", "autocast-bf16")


class PyTorchBackend:
    """Runs a checkpoint; ``options.provider`` is one of ``MODES``, by default ``eager``, which is FP32 throughout."""

    name = "pytorch"
    graph_devices: tuple[Device, ...] = ()

    def unavailable(self) -> str | None:
        return None

    def can_run(self) -> str | None:
        return None

    def version(self) -> str:
        return str(torch.__version__)

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        """Refuse: PyTorch runs the checkpoint itself.

        Raises:
            BuildError: Always.
        """
        raise BuildError(
            "pytorch builds no engine: name a checkpoint as the baseline with vd.bench(..., baseline='SOURCE')"
        )

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> PyTorchSession:
        """Open a checkpoint.

        Raises:
            BackendError: The artifact is no checkpoint, its weights do not fit its own model, or the device is absent.
        """
        if not isinstance(artifact, Checkpoint):
            raise BackendError(
                f"pytorch opens checkpoints, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                f"onnxruntime opens ONNX models, tensorrt opens engines"
            )
        from vitdeploy.models.registry import model_from_spec

        spec, preprocess = artifact.manifest.model, artifact.manifest.preprocess
        module = model_from_spec(spec)
        weights = {name: torch.from_numpy(array.copy()) for name, array in artifact.tensors().items()}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise BackendError(
                f"{str(artifact.path)!r} does not fit its model {spec.name!r}: {one_line(error)}"
            ) from error
        if preprocess is None:
            shape: tuple[int | None, ...] = (None, None, None, None)
        else:
            shape = (None, preprocess.channels, *preprocess.size)
        return open_module(module, shape, spec.arguments.get("num_classes"), options)


def sees_cuda() -> bool:
    """Return whether torch itself finds a CUDA device."""
    return torch.cuda.is_available()


def reason_without_cuda() -> str:
    """Return why torch sees no CUDA device: the machine has none, or this torch cannot use it; "" where it sees one."""
    if sees_cuda():
        return ""
    if reason := environment.reason_without_gpu():
        return reason
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built for the CPU alone, install one that is built for CUDA"
    here = environment.current()
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use {here.gpu}, driver for CUDA {here.cuda}"


def open_module(
    module: nn.Module,
    input_shape: tuple[int | None, ...],
    classes: int | None = None,
    options: SessionOptions = SessionOptions(),
) -> PyTorchSession:
    """Open a module that maps [batch, C, H, W] float32 to logits; it is put into evaluation mode.

    Args:
        module: Runs on the device that ``options`` name; one that is elsewhere is copied, so that a session on another
            device keeps its own.
        input_shape: With None for the batch, and for whatever else the module takes at any size.
        classes: Width of the logits where known.
        options: ``provider`` is one of ``MODES``; ``tf32`` and ``threads`` hold only while this session runs.
    Raises:
        BackendError: The provider is unknown, or device 'cuda' is asked for where torch sees none.
    """
    refuse_thread_settings("pytorch", options)
    mode = options.provider or "eager"
    if mode not in MODES:
        raise BackendError(f"pytorch has no provider {options.provider!r}, expected one of {', '.join(MODES)}")
    if options.device == "cuda" and (reason := reason_without_cuda()):
        raise BackendError(f"device 'cuda' cannot be used by torch: {reason}; device 'cpu' works without")
    on_gpu = options.device != "cpu" and sees_cuda()
    device = torch.device("cuda" if on_gpu else "cpu")
    outputs = TensorSpec("logits", np.dtype(np.float32), (None, classes))
    inputs = TensorSpec("input", np.dtype(np.float32), input_shape)
    return PyTorchSession(on_device(module.eval(), device), device, mode, options, (inputs, outputs))


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module itself where it is on the device, else a copy there: ``Module.to`` would move the one in use.

    Raises:
        BackendError: The device has no memory for it.
    """
    there = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
    if there <= {device.type}:
        return module
    try:
        return copy.deepcopy(module).to(device)
    except RuntimeError as error:
        raise BackendError(f"pytorch cannot put the model on {device}: {one_line(error)}") from error


class PyTorchSession(CheckedSession):
    """Evaluation mode, ``inference_mode``; FP32 but for autocast, TF32 only where ``options.tf32`` asks for it."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        mode: Mode,
        options: SessionOptions,
        specs: tuple[TensorSpec, TensorSpec],
    ) -> None:
        super().__init__("pytorch", f"{mode}-{device.type}", [specs[0]], [specs[1]])
        self._device = device
        self._options = options
        half = {"autocast-fp16": torch.float16, "autocast-bf16": torch.bfloat16}
        self._autocast = half.get(mode)
        # one program per batch size: a shape-generic one would be slower than what a user would deploy
        self._module: Callable[..., Any] | None = torch.compile(module, dynamic=False) if mode == "compile" else module

    def run(self, feed: Feed) -> Arrays:
        with self._settings():
            return super().run(feed)

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]:
        with self._settings():
            return super().time(feed, warmup=warmup, iterations=iterations, scope=scope)

    def _run(self, arrays: Arrays) -> Arrays:
        logits = self._forward(self._to_device(arrays["input"])).float()
        if self._device.type == "cuda":  # pinned on the way back too, as an engine's session does it
            pinned = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            pinned.copy_(logits, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return {"logits": pinned.numpy().copy()}
        array = logits.cpu().numpy()
        return {"logits": array if array.flags.owndata else array.copy()}

    def _to_device(self, images: NDArray[Any]) -> torch.Tensor:
        """Return images on the device; to a GPU through page-locked memory, from which a copy is fast.

        Raises:
            BackendError: Memory is short, or the GPU is lost.
        """
        try:
            host = torch.from_numpy(images)
            return host.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else host
        except RuntimeError as error:
            raise BackendError(f"pytorch failed: {one_line(error)}") from error

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self._module is not None
        half = self._autocast
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, half, enabled=half is not None):
                return cast(torch.Tensor, self._module(images))
        except Exception as error:  # an operator, the compiler, or memory: all end this session's usefulness
            raise BackendError(f"pytorch failed: {one_line(error)}") from error

    def _time_on_device(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        images = self._to_device(arrays["input"])
        if self._device.type != "cuda":
            return wall_clock_ms(lambda: self._forward(images), warmup, iterations)
        for _ in range(warmup):
            self._forward(images)
        new_event: Callable[[], Any] = functools.partial(torch.cuda.Event, enable_timing=True)
        events = [(new_event(), new_event()) for _ in range(iterations)]
        for start, end in events:
            start.record()
            self._forward(images)
            end.record()
            end.synchronize()
        return np.array([start.elapsed_time(end) for start, end in events], np.float64)

    def _release(self) -> None:
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Set torch's process-wide threads and TF32 for one block of calls, and put them back."""
        threads = torch.get_num_threads()
        wanted = self._options.threads or threads
        before = set_tf32(self._options.tf32) if self._device.type == "cuda" else None
        if wanted != threads:
            torch.set_num_threads(wanted)
        try:
            yield
        finally:
            if wanted != threads:
                torch.set_num_threads(threads)
            if before is not None:
                before()


def set_tf32(allowed: bool) -> Callable[[], None]:
    """Let products and convolutions of FP32 use TF32, or not; return what puts the settings back.

    torch 2.9 and newer have ``fp32_precision``; once a program has used it, the older ``allow_tf32`` cannot be read.
    """
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    name, value = "fp32_precision", "tf32" if allowed else "ieee"
    if not all(hasattr(place, name) for place in places):
        places, name, value = (torch.backends.cuda.matmul, torch.backends.cudnn), "allow_tf32", cast(str, allowed)
    held = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, value)

    def put_back() -> None:
        for place, before in zip(places, held, strict=True):
            setattr(place, name, before)

    return put_back
