"""The manifest: what an artifact is, what it was made from, and how that was checked."""

from __future__ import annotations

from typing import Any, Literal

from vitdeploy.records.base import Record, sha256_of
from vitdeploy.records.error_profile import ErrorProfile
from vitdeploy.records.model import ModelSpec
from vitdeploy.records.precision import CalibrationInfo, CpuIntegers, Precision, PrecisionPlan, Target
from vitdeploy.records.preprocess import Preprocess
from vitdeploy.records.samples import TrainingData

Kind = Literal["checkpoint", "onnx", "calibration-table", "engine"]
SCHEMA_VERSION = 1


class Environment(Record):
    """The machine that a number was measured on, or that an artifact was made on; unknown is None."""

    os: str
    python: str
    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    gpu_memory_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None


class Check(Record):
    """One comparison that a stage made of its own output; ``unchecked`` says in ``detail`` why it could not."""

    name: str
    status: Literal["passed", "failed", "unchecked"]
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""


class Examination(Record):
    """What an engine showed on a device: its checks, its products by precision, or the reason why neither is known."""

    checks: tuple[Check, ...]
    precision_by_layer: dict[str, int] | None = None
    reason: str = ""


class BuildInfo(Record):
    """How an engine was built: enough to know, before deserialising it, whether it can run here.

    ``batch`` is (least, preferred, largest) over all ``profiles``, each of which is (min, opt, max). An engine with
    ``version_compatible`` runs under a newer TensorRT too, one with ``hardware_compatibility`` on other GPUs;
    ``stripped`` says that its weights come from the ONNX model when it is opened. ``precision_by_layer`` counts the
    layers that compute products (gemm, conv, attention) per precision, as the engine's inspector reports them; None
    where no device could open it, with the reason in ``reason``.
    """

    backend: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    batch: tuple[int, int, int]
    profiles: tuple[tuple[int, int, int], ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    gpu: str | None = None
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    version_compatible: bool = False
    stripped: bool = False
    inspected: bool = False
    precision_by_layer: dict[str, int] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def takes(self, batch: int) -> bool:
        """Return whether one of the profiles has this batch size."""
        return any(low <= batch <= high for low, _, high in self.profiles or (self.batch,))

    @property
    def batch_limits(self) -> tuple[int, int]:
        """The smallest and the largest batch of the profile with the largest: what a run over many images uses."""
        low, _, high = max(self.profiles or (self.batch,), key=lambda profile: (profile[2], -profile[0]))
        return (low, high)


class Lowering(Record):
    """What a graph was lowered for, the name of the portable graph that it was made from, and the steps that gained."""

    runtime: str
    version: str
    cpu: str
    integers: CpuIntegers | None = None
    portable: str
    steps: tuple[str, ...] = ()


class Manifest(Record):
    """Travels with every artifact; see docs/architecture.md, "Artifacts".

    ``key`` is the freshness key: the digest of stage, options and parents (``stage_key``); a stage whose
    key is unchanged need not run again. ``payload_sha256`` is over the content, ``manifest_sha256`` over this record
    without itself. ``parents`` maps a role (``checkpoint``, ``onnx``, ``calibration``) to an ``identity``.
    ``lowered`` says for what a graph has operators of one runtime; None: it runs anywhere.
    ``trained_on`` are the trainings behind the weights, as far as vitdeploy ran them; every artifact that is made of
    them carries it on. ``error_profile`` is where a graph with 8-bit activations parts from its FP32 graph. There is no
    clock time, so the same inputs give the same manifest. ``golden`` are an engine's golden samples as text
    (``artifacts.Golden``); an ONNX model carries them beside its manifest, under ``golden_sha256``.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    key: str = ""
    model: ModelSpec
    preprocess: Preprocess | None = None
    precision: Precision = "fp32"
    target: Target | None = None
    plan: PrecisionPlan | None = None
    lowered: Lowering | None = None
    calibration: CalibrationInfo | None = None
    error_profile: ErrorProfile | None = None
    trained_on: tuple[TrainingData, ...] = ()
    build: BuildInfo | None = None
    checks: tuple[Check, ...] = ()
    metrics: dict[str, float] = {}
    parents: dict[str, str] = {}
    options: dict[str, Any] = {}
    producer: str = ""
    versions: dict[str, str] = {}
    environment: Environment | None = None
    golden_sha256: str | None = None
    golden: str | None = None
    payload_sha256: str = ""
    manifest_sha256: str = ""

    @property
    def batch_limits(self) -> tuple[int, int] | None:
        """The smallest and the largest batch of an engine; None for what is not built for a range."""
        return None if self.build is None else self.build.batch_limits

    @property
    def identity(self) -> str:
        """What this is and hands on to what is made of it, as one SHA-256; see ``identity_of``."""
        return identity_of(self.payload_sha256, self.model, self.preprocess, self.trained_on)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical manifest without ``manifest_sha256``."""
        return sha256_of(self.model_dump(mode="json", exclude={"manifest_sha256"}))

    def sealed(self, payload_sha256: str) -> Manifest:
        """Return a copy with both digests filled in."""
        copy = self.model_copy(update={"payload_sha256": payload_sha256, "manifest_sha256": ""})
        return copy.model_copy(update={"manifest_sha256": copy.digest()})


def identity_of(
    payload_sha256: str, model: ModelSpec, preprocess: Preprocess | None, trained_on: tuple[TrainingData, ...] = ()
) -> str:
    """Return the digest by which an artifact is known: of content, model, preprocessing and trainings.

    Weights or a graph alone do not say how images come to them, what their outputs mean or how many heads share them.
    Where a preprocessing was read (``source``) does not count, nor what the file of a foreign graph was called.
    """
    images = None if preprocess is None else preprocess.model_dump(mode="json", exclude={"source"})
    trainings = [one.model_dump(mode="json") for one in trained_on]
    free = {"name"} if model.family == "onnx" else set()
    return sha256_of([payload_sha256, model.model_dump(mode="json", exclude=free), images, trainings])


def stage_key(stage: str, options: dict[str, Any], parents: dict[str, str]) -> str:
    """Return the freshness key of a stage: equal exactly when stage, options and parents are equal."""
    return sha256_of({"stage": stage, "options": options, "parents": parents})
