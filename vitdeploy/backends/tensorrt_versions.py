"""TensorRT releases with known faults, and which GPUs a release serves: pure data and comparisons, no library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vitdeploy.records import BuildInfo, Environment

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


def runs_version(built: str, installed: str) -> bool:
    """Return whether a version-compatible engine of ``built`` runs under the runtime of ``installed``.

    The same or a newer release of the same major version, and 11 takes what 10 built (support matrix of 11.4).
    """
    ours, theirs = parse_version(installed), parse_version(built)
    return theirs <= ours and (ours[:1] == theirs[:1] or (theirs[:1], ours[:1]) == ((10,), (11,)))


def dla_refusal(version: str, machine: Environment, cores: int, core: int) -> str | None:
    """Return why an engine cannot run on a deep-learning accelerator here; None where it can.

    Thor and Orin Nano have none; the 10.x releases after 10.7 do not serve it, 11.4.1 does again on AGX Orin (release
    notes).
    """
    if cores == 0:
        board = machine.gpu or "this machine"
        if machine.compute_capability not in (ORIN, "7.2"):
            return f"{board} has no deep-learning accelerator (DLA): AGX Orin and Orin NX have"
        number = parse_version(version)
        if number[:2] > (10, 7) and number < (11, 4, 1):
            return (
                f"TensorRT {version} does not serve the deep-learning accelerator (DLA): 10.3 to 10.7 do, and 11.4.1 "
                "on "
                f"AGX Orin"
            )
        return f"{board} has no deep-learning accelerator (DLA) that TensorRT {version} can use"
    if core >= cores:
        return f"there is no DLA core {core}: this board has {', '.join(map(str, range(cores)))}"
    return None


def gpu_mismatch(built: BuildInfo, machine: Environment) -> str | None:
    """Return how this machine's GPU differs from what an engine of TensorRT was built for, None where it does not."""
    compatible, here = built.hardware_compatibility, machine.compute_capability
    if here is None:
        return None
    if compatible == "ampere-plus":
        if int(here.split(".")[0]) < 8:
            return f"runs on compute capability 8.0 and higher, here is {here} ({machine.gpu})"
        return None
    if built.compute_capabilities and here not in built.compute_capabilities:
        wanted = f"{', '.join(built.compute_capabilities)} ({built.gpu or 'another GPU'})"
        return f"was built for compute capability {wanted}, here is {here} ({machine.gpu})"
    if compatible == "none" and built.gpu is not None and built.gpu != machine.gpu:
        return f"was built on {built.gpu!r}, here is {machine.gpu!r}, and a plan runs on the model it was built on"
    return None


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
