"""Starting a training on the devices that were asked for."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy
from torch.multiprocessing.spawn import ProcessRaisedException

from vitdeploy import errors
from vitdeploy.backends.pytorch import reason_without_cuda
from vitdeploy.errors import TrainingError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.text import one_line
from vitdeploy.training.loop import Job, fit
from vitdeploy.training.options import Hardware
from vitdeploy.training.relay import Relay, SentProgress


def launch(job: Job, progress: Progress = SILENT) -> None:
    """Train ``job`` in as many processes as its hardware options ask for, and return when all are done.

    Several devices of one machine get a process each, started from here. Under torchrun or a cluster's launcher, and
    with the strategy ``ddp``, the whole command runs once per device; there, processes other than the first end here,
    so that what follows a training is done once.

    Raises:
        UsageError: Lightning Fabric refuses the hardware options, or the strategy divides the model.
        TrainingError, DataError: See ``fit``; with several processes TrainingError also for an error that is not ours.
        KeyboardInterrupt: Asked to stop; see ``fit``.
    """
    fabric = make_fabric(job.options.hardware)
    if _launcher(fabric) == "_MultiProcessingLauncher":
        _launch_children(fabric, job, progress)
        return
    fabric.launch(partial(fit, job=job, progress=progress))
    if fabric.global_rank > 0:
        raise SystemExit(0)


def _launch_children(fabric: Fabric, job: Job, progress: Progress) -> None:
    try:
        with Relay(progress) as relay, _signals_to_children():
            fabric.launch(partial(_fit_sent, job=job, progress=relay.sender))
    except ProcessRaisedException as error:
        reason = str(error).strip().splitlines()[-1]
        if reason.startswith("KeyboardInterrupt"):
            raise KeyboardInterrupt from error
        kind, _, message = reason.removeprefix("vitdeploy.errors.").partition(": ")
        if reason.startswith("vitdeploy.errors.") and hasattr(errors, kind):
            raise getattr(errors, kind)(message) from error
        raise TrainingError(f"a training process failed: {reason}") from error


def _fit_sent(fabric: Fabric, job: Job, progress: SentProgress) -> None:
    """Train a job that came from another process, on weights of its own.

    Tensors that are sent to a process share their memory with the sender and with its other children.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fit(fabric, replace(job, module=copy.deepcopy(job.module)), progress)


@contextmanager
def _signals_to_children() -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM on to the training processes, which stop where their state is whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_fabric(hardware: Hardware) -> Fabric:
    """Return Fabric for these options.

    Raises:
        UsageError: The options do not exist or do not go together on this machine.
    """
    if hardware.accelerator in ("cuda", "gpu") and (reason := reason_without_cuda()):
        raise UsageError(f"device {hardware.accelerator!r} cannot be used: {reason}; 'cpu' works without")
    options: dict[str, Any] = {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "num_nodes": hardware.num_nodes,
        "strategy": hardware.strategy,
        "precision": hardware.precision,
    }
    fabric = _fabric(options)
    environment = getattr(fabric.strategy, "cluster_environment", None)
    alone = environment is not None and not environment.creates_processes_externally
    if hardware.strategy == "auto" and alone and _launcher(fabric) == "_SubprocessScriptLauncher":
        # It would run the whole command again, once per device, with all that surrounds the training.
        fabric = _fabric({**options, "strategy": "ddp_spawn"})
    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UsageError(
            f"strategy {hardware.strategy!r} divides the model between devices, and vitdeploy keeps a copy on each: "
            f"take 'ddp' or one of its kinds"
        )
    if hardware.precision == "16-mixed" and fabric.device.type == "cpu":
        raise UsageError("precision '16-mixed' needs a GPU: take 'bf16-mixed' or '32-true' on the CPU")
    return fabric


def _fabric(options: dict[str, Any]) -> Fabric:
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every process and precision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would change silently is refused by the caller
            fabric = Fabric(**options)
        environment = getattr(fabric.strategy, "cluster_environment", None)
        if environment is not None:
            count = getattr(fabric.strategy, "num_processes", 1)
            environment.validate_settings(num_devices=count, num_nodes=options["num_nodes"])
    except (ValueError, RuntimeError, TypeError, ImportError, KeyError) as error:
        raise UsageError(f"Lightning Fabric refuses {_listed(options)}: {one_line(error)}") from error
    return fabric


def _launcher(fabric: Fabric) -> str:
    return type(fabric.strategy.launcher).__name__


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
