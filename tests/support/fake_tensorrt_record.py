"""What was asked of a module of ``fake_tensorrt`` and what it does wrong, and the values that its classes share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

MAGIC = b"fake plan\n"


@dataclass
class Record:
    """What was asked of a module, and what it is to do wrong.

    ``fault`` is what an engine does wrong: ``zeros``, ``fail`` (refuses to run), ``illegal`` (a kernel breaks the
    device), ``no-capture`` (it cannot be captured), ``no-memory`` (a context cannot be made). ``start`` is how a
    builder or runtime fails to start: ``nullptr`` (pybind's TypeError), ``error35`` (an error is logged and an object
    returned that cannot be used). ``inspector`` replaces the inspector's answer, ``precision`` is what its products
    run in where that is not what the graph says. ``warnings`` are logged when an engine is deserialized.
    """

    cuda: Any = None
    gpu: str = "some GPU"
    flags: list[int] = field(default_factory=list)
    set: list[Any] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    contexts: list[tuple[Any, ...]] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    kernels_compiled: int = 0
    dla_cores: int = 0
    dla_runtimes: list[int] = field(default_factory=list)
    fault: str = ""
    start: str = ""
    inspector: str | None = None
    precision: str = ""
    warnings: tuple[str, ...] = ()
    validity: str = "VALID"
    diagnostics: int = 0
    logger: Any = None


class Dims(list[int]):
    """A shape as TensorRT gives it: neither a tuple nor equal to one."""


class HostMemory(bytearray):
    """What a build returns: something with the buffer protocol."""


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def log(module: Any, logger: Any, text: str, severity: str = "ERROR") -> None:
    logger.log(module.ILogger.Severity[severity], text)


def start(module: Any, holder: Any, logger: Any, what: str) -> None:
    """Start a builder or a runtime, or fail to as ``Record.start`` says."""
    record: Record = module.record
    record.logger = record.logger or logger  # TensorRT keeps the first logger that it is given
    holder._logger, holder._usable = record.logger, True
    if record.start == "nullptr":
        log(module, holder._logger, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    if record.start == "error35":
        log(
            module,
            holder._logger,
            f"create{what}: Error Code 6: API Usage Error (CUDA initialization failure with error: 35 In "
            "checkCudaInstallation at /_src/runtime/dispatch/runtime.cpp:960)",
        )
        holder._usable = False
