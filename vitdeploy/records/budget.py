"""The accuracy–latency front of a search for the fastest precision within a budget (``front.json``, schema 1)."""

from __future__ import annotations

from vitdeploy.records.base import Record
from vitdeploy.records.manifest import Environment
from vitdeploy.records.precision import NodePrecision, PrecisionPlan, Target
from vitdeploy.wording import Interval

FRONT = "front.json"


class FrontCandidate(Record):
    """One assignment of precisions, timed and judged against the FP32 graph on the same images.

    ``high`` are the groups that stay in high precision though the full plan quantizes them. ``speedup`` is against the
    FP32 graph in the same rounds, and ``p50_ms`` the median of the FP32 graph divided by it: not all were timed in the
    same rounds. ``gained`` and ``lost`` count images that only this or only the FP32 graph gets
    right. ``certified``: the whole 95 % interval of the drop is within the budget, and so is that of every safer
    candidate. ``images_needed`` is about how many would certify it; None where it is certified, or where its drop is
    beyond the budget. ``finalist``: certified, and timed once more beside the other finalists. ``on_front``: none that
    is at least as fast has less error. ``plan_file`` lies beside the record.
    """

    name: str
    precision: NodePrecision
    high: tuple[str, ...] = ()
    p50_ms: float | None = None
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    top1: float | None = None
    delta_top1_pp: float | None = None
    delta_ci95_pp: Interval | None = None
    gained: int = 0
    lost: int = 0
    agreement: float | None = None
    logits_sqnr_db: float | None = None
    logits_identical: bool = False
    certified: bool = False
    images_needed: int | None = None
    finalist: bool = False
    on_front: bool = False
    failure: str = ""
    plan: PrecisionPlan | None = None
    plan_file: str = ""


class Front(Record):
    """What was tried, the fastest first; with fewer images than ``least_images`` the least error of the logits first.

    ``chosen`` is the candidate that was written; ``within_budget`` says whether it is what was asked for, or only the
    best that was found. ``least_images`` certify the budget where no prediction changes. ``verdict`` is all of
    it in words.
    """

    schema_version: int = 1
    model: str
    model_sha256: str
    target: Target
    max_drop_pp: float
    runtime: str
    batch: int
    calibration: str
    data: str
    data_sha256: str
    images: int
    least_images: int
    chosen: str
    within_budget: bool
    verdict: tuple[str, ...]
    candidates: tuple[FrontCandidate, ...]
    seconds: float
    producer: str = ""
    versions: dict[str, str] = {}
    environment: Environment
