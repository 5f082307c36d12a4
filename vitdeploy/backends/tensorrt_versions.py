"""TensorRT releases with known faults, and which GPUs a release serves: pure data and comparisons, no library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vitdeploy.records import Environment

OLDEST = (10, 3)
THOR = "11.0"
ORIN = "8.7"


@dataclass(frozen=True)
class Problem:
    """What is wrong with this TensorRT on this machine; ``refuse`` means that engines would be wrong or fail."""

    severity: Literal["refuse", "warn"]
    text: str


def parse_version(version: str) -> tuple[int, ...]:
    """Return the leading numbers: ``10.13.3.9.post1`` → (10, 13, 3, 9)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def compute_capability_key(capability: str) -> tuple[int, ...]:
    """Return a key that orders ``8.9`` before ``12.0``."""
    return parse_version(capability)


def find_problems(version: str, machine: Environment) -> list[Problem]:
    """Return what is known against running this TensorRT release on this machine, refusals first.

    Cases: older than 10.3; 10.4 (attention miscompiled even in FP32, NVIDIA/TensorRT issue 4742); 10.13.3 on Orin (the
    Arm server build holds no kernels for sm_87); a GPU older than Turing under 11; 11.0 to 11.4.0 on JetPack, and 11 on
    JetPack 6; 10.13 on Thor (unreliable half precision).
    """
    number = parse_version(version)
    capability = machine.compute_capability
    refusals: list[str] = []
    warnings: list[str] = []
    if number[:2] < OLDEST:
        refusals.append(f"TensorRT {version} is too old, expected 10.3 or newer: pip install 'tensorrt>=10.5'")
    if number[:2] == (10, 4):
        refusals.append(
            f"TensorRT {version} miscompiles the attention of vision transformers even in FP32: "
            f"use 10.3, or 10.5 and newer (pip install 'tensorrt>=10.5')"
        )
    if number[:3] == (10, 13, 3) and capability == ORIN:
        refusals.append(
            f"TensorRT {version} holds no kernels for sm_87 (Jetson Orin): use the TensorRT that came with JetPack, "
            f"or 10.16 and newer"
        )
    if number[:1] >= (11,) and capability is not None and compute_capability_key(capability) < (7, 5):
        refusals.append(
            f"TensorRT {version} needs compute capability 7.5 or higher, this GPU has {capability}: "
            f"pip install 'tensorrt<11'"
        )
    if machine.jetpack is not None and number[:1] >= (11,):
        if machine.jetpack.startswith("6") or "L4T 36" in machine.jetpack:
            refusals.append(f"TensorRT {version} does not serve JetPack 6: stay on the 10.x that came with JetPack")
        elif number < (11, 4, 1):
            warnings.append(f"TensorRT {version} does not support JetPack before 11.4.1: use JetPack's own TensorRT")
    if number[:2] == (10, 13) and capability == THOR:
        warnings.append(
            f"TensorRT {version} was seen to compute FP16 unreliably on Thor: check the accuracy in the report"
        )
    return [Problem("refuse", text) for text in refusals] + [Problem("warn", text) for text in warnings]
