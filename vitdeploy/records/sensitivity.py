"""What quantizing each part of a graph costs (``sensitivity``, schema 1)."""

from __future__ import annotations

from vitdeploy.notebook import html_table
from vitdeploy.records.base import Record
from vitdeploy.records.manifest import Environment
from vitdeploy.records.precision import NodePrecision, PrecisionPlan, Target
from vitdeploy.text import UNKNOWN
from vitdeploy.wording import Interval, decibel_text, percent_text, points_text


class Effect(Record):
    """What a graph with integers lost against the FP32 graph, on the same images.

    ``kl`` is the mean divergence of its class probabilities from the FP32 graph's, in nats. ``failure`` says why a
    graph gave no logits; then nothing else is known. An SQNR without bound is None with ``logits_identical`` true.
    """

    logits_sqnr_db: float | None = None
    logits_identical: bool = False
    kl: float | None = None
    agreement: float | None = None
    delta_top1_pp: float | None = None
    delta_ci95_pp: Interval | None = None
    failure: str = ""


class PartSensitivity(Record):
    """A group of nodes, or all groups of one kind.

    ``quantized``: whether the plan gives it integers; where not, ``reason`` says why. ``alone``: only this part is
    quantized. ``left_out``: everything of the plan but this part is; None where the plan leaves it out anyway.
    ``gain_db``: how much the logits SQNR of the whole plan rises when it is left out. ``share``: its part of the summed
    error of all parts, each alone.
    """

    name: str
    kind: str
    groups: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    quantized: bool
    reason: str = ""
    alone: Effect
    left_out: Effect | None = None
    gain_db: float | None = None
    share: float | None = None


class Sensitivity(Record):
    """Where the error of a quantized graph comes from.

    ``groups`` and ``kinds`` are ranked: those that the plan quantizes first, the worst first. ``all`` is the whole
    ``plan``. ``trials`` graphs were run on ``images`` images each.
    """

    schema_version: int = 1
    model: str
    model_sha256: str
    precision: NodePrecision
    target: Target
    calibration: str
    calibration_images: int
    data: str
    data_sha256: str
    images: int
    labelled: bool
    trials: int
    seconds: float
    all: Effect
    groups: tuple[PartSensitivity, ...] = ()
    kinds: tuple[PartSensitivity, ...] = ()
    plan: PrecisionPlan
    producer: str = ""
    versions: dict[str, str] = {}
    environment: Environment

    def _repr_html_(self) -> str:
        """Return the groups as a table of a notebook."""
        header = ("Group", "Kind", "Alone", "Share of error", "Agreement", "Δ top-1, pp", "Left out")
        return html_table(
            f"{self.model}: {self.precision} on {self.images} images", header, [*map(_cells, self.groups)]
        )


def _cells(part: PartSensitivity) -> tuple[str, ...]:
    alone = part.alone
    return (
        part.name,
        part.kind,
        decibel_text(alone.logits_sqnr_db, alone.logits_identical),
        percent_text(part.share, 1),
        percent_text(alone.agreement),
        points_text(alone.delta_top1_pp),
        UNKNOWN if part.gain_db is None else f"{part.gain_db:+.1f} dB",
    )
