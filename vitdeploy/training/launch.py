"""Starting a training on the devices that were asked for."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy
from torch.multiprocessing.spawn import ProcessRaisedException

from vitdeploy.errors import TrainingError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.training.loop import Job, fit
from vitdeploy.training.options import Hardware


def launch(job: Job, progress: Progress = SILENT) -> None:
    """Train ``job`` in as many processes as its hardware options ask for, and return when all are done.

    Processes other than the first end here, so that what follows a training is done once.

    Raises:
        UsageError: Lightning Fabric refuses the hardware options, or the strategy divides the model.
        TrainingError: See ``fit``.
    """
    fabric = make_fabric(job.options.hardware)
    spawns = type(fabric.strategy.launcher).__name__ == "_MultiProcessingLauncher"
    try:
        fabric.launch(partial(_fit_sent, job=job) if spawns else partial(fit, job=job, progress=progress))
    except ProcessRaisedException as error:
        raise TrainingError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error
    if fabric.global_rank > 0:
        raise SystemExit(0)


def _fit_sent(fabric: Fabric, job: Job) -> None:
    """Train a job that came from another process: silently, for a bar cannot be sent, and on weights of its own.

    Tensors that are sent to a process share their memory with the sender and with its other children.
    """
    fit(fabric, replace(job, module=copy.deepcopy(job.module)), SILENT)


def make_fabric(hardware: Hardware) -> Fabric:
    """Return Fabric for these options.

    Raises:
        UsageError: The options do not exist or do not go together on this machine.
    """
    options: dict[str, Any] = {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "num_nodes": hardware.num_nodes,
        "strategy": hardware.strategy,
        "precision": hardware.precision,
    }
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every process and precision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would change silently is refused below
            fabric = Fabric(**options)
    except (ValueError, RuntimeError, TypeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"Lightning Fabric refuses {_listed(options)}: {reason}") from error
    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UsageError(
            f"strategy {hardware.strategy!r} divides the model between devices, and vitdeploy keeps a copy on each: "
            f"take 'ddp' or one of its kinds"
        )
    if hardware.precision == "16-mixed" and fabric.device.type == "cpu":
        raise UsageError("precision '16-mixed' needs a GPU: take 'bf16-mixed' or '32-true' on the CPU")
    return fabric


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
