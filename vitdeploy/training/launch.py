"""Starting a training on the devices that were asked for."""

from __future__ import annotations

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
    launcher = type(fabric.strategy.launcher).__name__
    if launcher == "_MultiProcessingLauncher":
        progress = SILENT  # a bar cannot be sent to another process
    try:
        fabric.launch(fit, job, progress)
    except ProcessRaisedException as error:
        raise TrainingError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error
    if fabric.global_rank > 0:
        raise SystemExit(0)


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
    try:
        fabric = Fabric(**options)
    except (ValueError, RuntimeError, TypeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"Lightning Fabric refuses {_listed(options)}: {reason}") from error
    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UsageError(
            f"strategy {hardware.strategy!r} divides the model between devices, and vitdeploy keeps a copy on each: "
            f"take 'ddp' or one of its kinds"
        )
    return fabric


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
