"""Which part of a graph runs in which precision, and why: policy as data."""

from __future__ import annotations

from typing import Literal

from vitdeploy.records.base import Record
from vitdeploy.records.constraints import Count
from vitdeploy.records.samples import SampleSet
from vitdeploy.wording import Interval

Precision = Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8", "mixed"]
NodePrecision = Literal["fp32", "fp16", "bf16", "int8", "int8-weight-only", "fp8"]
Target = Literal["tensorrt", "onnxruntime", "openvino"]
CpuIntegers = Literal["any", "vnni", "amx"]
RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
Rounding = Literal["nearest", "gptq"]
Rotated = Literal["stream", "values"]


class Treatment(Record):
    """How the numbers of a group are chosen; with the same observations it gives the same integers.

    ``ranges``: how the largest magnitude to represent follows from what was observed; ``percent`` is for
    ``percentile``. ``scaling``: the alpha with which the channels of the group's activation are scaled, None: not at
    all; ``scaled_by`` says where the factors go: into constants before it, or into a Mul of its own. ``shifted``: the
    middle of each channel's range moves into constants before it and into the biases behind it. ``bias_corrected``:
    the mean error of the outputs is taken off the biases. ``rounding``: each weight to its nearest integer, or
    weights together, so that the outputs keep their values.
    """

    ranges: RangeMethod = "minmax"
    percent: float = 99.99
    scaling: float | None = None
    scaled_by: Literal["constants", "mul"] | None = None
    shifted: bool = False
    bias_corrected: bool = False
    rounding: Rounding = "nearest"


class PlanEntry(Record):
    """One group of nodes that changes precision together, and the reason for its precision.

    ``group`` is a readable path (``blocks.3.attn.qkv``); ``nodes`` are the ONNX node names it stands for.
    ``treatment`` is None for groups without integers, and where it is left to ``quantize``.
    """

    group: str
    nodes: tuple[str, ...] = ()
    precision: NodePrecision
    reason: str = ""
    treatment: Treatment | None = None


class PrecisionPlan(Record):
    """The precision of every quantizable group; ``remainder`` is what all other nodes run in.

    A BF16 remainder is FP32 in the graph, and OpenVINO is asked to compute it in BF16 where the processor can.
    ``cpu`` says for which processors a graph for ONNX Runtime or OpenVINO is: ``any``; ``vnni``, those that add
    products of 8 bits in 32, where weights may use all their bits; ``amx``, those that multiply signed activations too.
    ``rotated`` says which channels are in another basis, by matrices that follow from their number: those of the
    residual streams, those of the attentions' values within each head. ``sampled_rows`` says how many rows of an image
    its numbers were computed from, if not 4.
    """

    profile: str
    remainder: Literal["fp32", "fp16", "bf16"]
    cpu: CpuIntegers = "any"
    rotated: tuple[Rotated, ...] = ()
    sampled_rows: Count | None = None
    entries: tuple[PlanEntry, ...] = ()


class PairedSpeed(Record):
    """How many times as fast a graph is as the one before it, timed in turns at a batch size, with a 95 % interval."""

    batch: int
    speedup: float
    interval: Interval | None = None


class Trial(Record):
    """A step of quantization that was tried: the logits SQNR with it, and whether it was kept.

    ``speeds``: of a step that was timed on the machine that the graph is for, beside the graph without it; () where it
    was not, as its logits had decided.
    """

    step: str
    sqnr_db: float
    kept: bool
    speeds: tuple[PairedSpeed, ...] = ()


class CalibrationInfo(Record):
    """Where activation ranges come from: the set, how many samples, how ranges were chosen, what was kept out.

    ``trials`` are the steps that were tried, in order, by the logits SQNR on ``compared`` images. ``images`` are those
    that the ranges were taken from; None in files of version 0.1. ``graph_sha256`` is the payload digest of the graph
    whose ranges they are: class names do not change them.
    """

    data: str
    graph_sha256: str = ""
    set_sha256: str
    samples: int
    method: str
    held_out: int = 0
    images: SampleSet | None = None
    compared: int = 0
    trials: tuple[Trial, ...] = ()
