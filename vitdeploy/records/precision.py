"""Which part of a graph runs in which precision, and why: policy as data."""

from __future__ import annotations

from typing import Literal

from vitdeploy.records.base import Record
from vitdeploy.records.samples import SampleSet

Precision = Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8", "mixed"]
NodePrecision = Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8"]
Target = Literal["tensorrt", "onnxruntime", "openvino"]


class PlanEntry(Record):
    """One group of nodes that changes precision together, and the reason for its precision.

    ``group`` is a readable path (``blocks.3.attn.qkv``); ``nodes`` are the ONNX node names it stands for.
    ``equalization`` is the alpha with which the channels of the group's activation were scaled, None where they were
    not; ``scaled_by`` says where the factors went: into constants before it, or into a Mul of their own.
    """

    group: str
    nodes: tuple[str, ...] = ()
    precision: NodePrecision
    reason: str = ""
    equalization: float | None = None
    scaled_by: Literal["constants", "mul"] | None = None


class PrecisionPlan(Record):
    """The precision of every quantizable group; ``remainder`` is what all other nodes run in."""

    profile: str
    remainder: Literal["fp32", "fp16"]
    entries: tuple[PlanEntry, ...] = ()


class CalibrationInfo(Record):
    """Where activation ranges come from: the set, how many samples, how ranges were chosen, what was kept out.

    ``images`` are those that the ranges were taken from; None in files of version 0.1.
    """

    data: str
    set_sha256: str
    samples: int
    method: str
    held_out: int = 0
    images: SampleSet | None = None
