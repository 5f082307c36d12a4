"""The report (``report.json``, schema 1): rows of measurements under one set of conditions, and a verdict in words.

Accuracies are fractions in 0…1, differences are percentage points (``_pp``), times milliseconds (``_ms``). What was not
measured is None, never 0.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import ConfigDict, Field

from vitdeploy.errors import GateError, UsageError
from vitdeploy.notebook import html_table
from vitdeploy.records.base import Record
from vitdeploy.records.census import OperatorCensus
from vitdeploy.records.differences import Differences
from vitdeploy.records.error_profile import ErrorProfile
from vitdeploy.records.layer_profile import LayerProfile
from vitdeploy.records.manifest import Environment
from vitdeploy.records.precision import Precision, Target
from vitdeploy.records.scenario import ScenarioResult
from vitdeploy.text import UNKNOWN, printable, size_text
from vitdeploy.wording import Interval, ms_text, percent_text, points_text, ratio_text

__all__ = ["Baseline", "Conditions", "Device", "DropBy", "Interval", "Report", "Row", "Timing"]

REPORT = "report.json"
REPORT_FILES = (REPORT, "report.md", "report.html")
"""What a report's folder holds; the JSON takes its place first."""
SAMPLES = "report.samples.npz"
"""The duration of every counted call, beside the report."""
DIGEST_KEY = "report_sha256"
"""The last key of the file: the digest of all others."""

BACKEND_TITLES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-lean": "TensorRT lean",
    "tensorrt-rtx": "TensorRT-RTX",
}
TARGET_OF_BACKEND: dict[str, Target] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-lean": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}
TARGET_OF_PROVIDER: dict[str, Target] = {
    "tensorrt": "tensorrt",
    "TensorrtExecutionProvider": "tensorrt",
    "openvino": "openvino",
    "OpenVINOExecutionProvider": "openvino",
}


Device = Literal["cpu", "cuda"]
DropBy = Literal["point", "interval"]
"""What a limit on top-1 judges: the measured difference, or the worse end of its 95 % interval."""
TimedScope = Literal["device", "end_to_end", "image_to_label"]


class Audit(Record):
    """Whether the work was done that was timed, from ``calls`` sampled between turns.

    ``outputs_off`` is the largest difference of an output from that of the accuracy run for the same image, as a
    fraction of the logits' range. ``new_image_ratio`` is the median time of a call on new images over one on the same
    images again: far above 1, answers come from a cache.
    """

    calls: int
    outputs_off: float
    new_image_ratio: float | None


class Timing(Record):
    """Latency of one candidate at one batch size.

    ``scope``: ``device`` leaves copies to and from the device out, ``end_to_end`` counts them, ``image_to_label``
    begins with the image's file (or its pixels, where the data has no files) and ends with the class.
    ``drift`` is the median of the last third of the rounds over that of the first; ``alone_ratio`` the median in turns
    over the median of this candidate alone, from a self-check.
    ``clock_mhz`` and ``power_w`` are medians over the turns, ``temperature_c`` the highest, ``throttled`` every reason
    that was seen; null where there is no sensor.
    ``calls`` is how many calls were counted over all rounds. ``enqueue_ms`` is the median of the host's time per
    launch, beside the device's own: where it is the longer of the two, the host is the bottleneck. ``launch`` says
    whether the engine was launched as a CUDA graph or kernel by kernel. ``speedup`` is the ratio of medians, baseline
    to this, on the same device in the same rounds.
    """

    batch: int
    streams: int = 1
    scope: TimedScope
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p50_ci95: Interval | None = None
    p90_ci95: Interval | None = None
    p99_ci95: Interval | None = None
    mean_ms: float
    images_per_s: float
    calls: int | None = None
    drift: float | None = None
    alone_ratio: float | None = None
    alone_ci95: Interval | None = None
    audit: Audit | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] = ()
    enqueue_ms: float | None = None
    launch: Literal["cuda-graph", "stream"] | None = None
    speedup: float | None = None
    speedup_ci95: Interval | None = None


def backend_title(backend: str) -> str:
    """Return how a backend is written for people; one of another package as it is called."""
    return BACKEND_TITLES.get(backend, backend)


def threads_text(pinning: bool | None, spinning: bool | None) -> str:
    """Return ``threads pinned and sleeping``; nothing where both are left to the runtime."""
    words = {True: ("pinned", "spinning"), False: ("not pinned", "sleeping")}
    found = [words[value][index] for index, value in enumerate((pinning, spinning)) if value is not None]
    return f"threads {' and '.join(found)}" if found else ""


def executing_target(backend: str, provider: str | None) -> Target | None:
    """Return the target whose graphs a runtime is meant for; None for PyTorch, which runs no graph."""
    return TARGET_OF_PROVIDER.get(provider or "", TARGET_OF_BACKEND.get(backend))


class Sustained(Record):
    """A candidate that ran without a pause at one batch size: equally long slices of time, oldest first.

    ``slowdown`` is the median of the last tenth of the slices over that of the first tenth.
    """

    batch: int
    seconds: float
    at_s: tuple[float, ...]
    p50_ms: tuple[float, ...]
    clock_mhz: tuple[float | None, ...]
    temperature_c: tuple[float | None, ...]
    throttled: tuple[str, ...]
    slowdown: float


class Throughput(Record):
    """Images per second of several execution contexts at once, each on a stream of its own, over ``seconds``."""

    batch: int
    streams: int
    scope: TimedScope
    images_per_s: float
    seconds: float


class ThreadTiming(Record):
    """Latency of a candidate on the CPU with a number of threads, end to end, in turns with all others."""

    threads: int
    batch: int
    p50_ms: float
    p50_ci95: Interval | None = None
    images_per_s: float


class ClassCount(Record):
    """A class of the data, as the data calls it, and how many images it has."""

    name: str
    images: int


class Row(Record):
    """One candidate. ``built`` means that the artifact exists and no device here can run it; ``reason`` says why.

    ``logits_sqnr_db`` is None too where the logits are the baseline's bit for bit, as JSON has no infinity; then
    ``logits_identical`` is true. ``correct_by_class`` is how many images of each of ``Conditions.classes`` are right.
    ``peak_memory_bytes`` is of a whole process on the host, not of a GPU.
    ``model_number`` is the same for rows that are one model in several precisions or runtimes; those of another model
    than the baseline have no agreement and no SQNR.
    ``payload_sha256`` is the ``digest`` of the artifact: of its content, model, preprocessing and trainings.
    ``census`` says which 8-bit products of a graph its runtime computes in integers, None where it does not tell.
    ``error_profile`` is what ``quantize`` saw inside the graph, on its own images and in ONNX Runtime.
    ``layer_profile`` is where the time of a call goes, layer by layer; None where that was not asked for, or its
    runtime does not tell.
    ``pinning`` says whether its CPU threads were pinned to cores, ``spinning`` whether they spun while they waited;
    None: what the runtime does by itself.
    ``by_threads`` are latencies with other numbers of threads, empty where none were asked for.
    ``scenarios`` are those of MLPerf Inference that were asked for.
    ``energy_mj_per_image`` is what the device's own meter counted over at least 5 s of calls, idle power included.
    """

    name: str
    backend: str
    provider: str | None = None
    device: Device | None = None
    pinning: bool | None = None
    spinning: bool | None = None
    target: Target | None = None
    precision: Precision
    status: Literal["ok", "built", "skipped", "failed"]
    reason: str = ""
    top1: float | None = None
    top1_ci95: Interval | None = None
    delta_top1_pp: float | None = None
    delta_ci95_pp: Interval | None = None
    correct_by_class: tuple[int, ...] | None = None
    agreement: float | None = None
    logits_sqnr_db: float | None = None
    logits_identical: bool | None = None
    timings: tuple[Timing, ...] = ()
    load_ms: float | None = None
    first_inference_ms: float | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    energy_mj_per_image: float | None = None
    sustained: Sustained | None = None
    throughput: tuple[Throughput, ...] = ()
    by_threads: tuple[ThreadTiming, ...] = ()
    scenarios: tuple[ScenarioResult, ...] = ()
    inspected: bool | None = None
    precision_by_layer: dict[str, int] | None = None
    census: OperatorCensus | None = None
    error_profile: ErrorProfile | None = None
    layer_profile: LayerProfile | None = None
    payload_sha256: str | None = None
    model_number: int = 1
    notes: tuple[str, ...] = ()


class SelfCheck(Record):
    """A candidate that took part twice: the ratio of its two medians should be 1, within its interval."""

    row: str
    batch: int
    ratio: float
    ratio_ci95: Interval | None


class Conditions(Record):
    """How the rows were measured.

    A turn throws ``warmup`` calls away and counts ``iterations`` of them, fewer where they would take more than
    ``block_s``, more where they would take less than ``fill_s``. ``threads`` 0 is each runtime's own choice.
    ``other_load_cores`` is how many cores other processes kept busy while times were taken. ``chance`` is the top-1 of
    always answering with the most frequent class of the data (1/classes where all are as frequent); None: no labels.
    ``classes`` are those of the data that have images, in its order.
    ``governor`` is that of the CPU's clock, ``idle_power_w`` what a device's meter counted while nothing ran.
    """

    data: str
    data_sha256: str
    n_samples: int
    chance: float | None = None
    classes: tuple[ClassCount, ...] = ()
    batches: tuple[int, ...]
    threads: int
    warmup: int
    rounds: int
    iterations: int
    block_s: float | None = None
    fill_s: float | None = None
    accuracy_batch: int | None = None
    other_load_cores: float | None = None
    tf32: bool = False
    seed: int = 0
    self_check: SelfCheck | None = None
    governor: str | None = None
    idle_power_w: dict[Device, float] = {}


class Baseline(Record):
    """What every difference and speed-up is against.

    ``row`` names the row that is the baseline, None where it is none of them (stored reference logits).
    ``latency_rows`` names, for each row that has a speed-up, the row on the same device that it is against.
    """

    row: str | None
    accuracy_against: str
    latency_against: str | None
    latency_rows: dict[str, str] = {}
    payload_sha256: str | None = None


class Report(Record):
    """``report.json``; ``created`` is UTC in ISO 8601, the only clock time in any record.

    ``differences`` are images on which a row and the baseline predict different classes; None where there is no
    baseline, or no single class. ``files`` are what the bench wrote besides, by name with their SHA-256: the durations,
    and the predictions. ``command`` measures the same again, where the artifacts lie: for the shell, or in
    Python where it needs options that have no flag.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)

    schema_version: int = Field(default=1, alias="schema")
    created: str
    producer: str
    key: str = ""
    command: str = ""
    model: str
    environment: Environment
    versions: dict[str, str] = {}
    baseline: Baseline
    conditions: Conditions
    rows: tuple[Row, ...]
    differences: Differences | None = None
    files: dict[str, str] = {}
    verdict: tuple[str, ...]

    def __repr__(self) -> str:
        data = f"{self.conditions.data}, {self.conditions.n_samples} images"
        return printable(f"<Report {self.created}: {self.model} on {data}, {len(self.rows)} rows>")

    __str__ = __repr__

    def check(
        self,
        *,
        max_drop_pp: float | None = None,
        max_drop_by: DropBy = "point",
        min_accuracy_ratio: float | None = None,
    ) -> None:
        """Refuse a report whose candidates lost too much of the baseline's top-1; without a limit nothing is refused.

        Args:
            max_drop_pp: How many percentage points of top-1 a candidate may lose.
            min_accuracy_ratio: The least share of the baseline's top-1 that a candidate keeps, such as 0.99 (the limit
                of MLPerf Inference's closed division for most models); the measured values are judged.
            max_drop_by: ``point`` judges the measured difference; ``interval`` the worse end of its 95 % interval, so
                that too few images never pass.
        Raises:
            GateError: A candidate lost more, or none could be compared; the line names each.
            UsageError: A limit is out of range, or ``max_drop_by`` is neither of the two.
        """
        if max_drop_pp is None and min_accuracy_ratio is None:
            return
        if max_drop_pp is not None:
            refuse_wrong_limit(max_drop_pp, max_drop_by)
        if min_accuracy_ratio is not None and not 0 < min_accuracy_ratio <= 1:
            raise UsageError(f"min_accuracy_ratio is {min_accuracy_ratio!r}, expected a share above 0, at most 1")
        changes = [row for row in self.rows if row.delta_top1_pp is not None and row.name != self.baseline.row]
        if not changes:
            raise GateError("no candidate's top-1 could be compared with a baseline")
        found = []
        for row in changes:
            if min_accuracy_ratio is not None:
                found.append(share_text(row, min_accuracy_ratio))
            if max_drop_pp is not None:
                found.append(drop_text(row.name, row.delta_top1_pp, row.delta_ci95_pp, max_drop_pp, max_drop_by))
        broken = [text for text in found if text]
        if broken:
            raise GateError("; ".join(broken))

    def _repr_html_(self) -> str:
        return html_table(
            f"{self.model} on {self.conditions.data} ({self.conditions.n_samples} images)",
            ("Artifact", "Runtime", "Precision", "Top-1", "Δ pp", "Batch", "p50 ms", "Speed-up", "Size"),
            [_cells(row, self.baseline.row) for row in self.rows],
            self.verdict,
        )


def refuse_wrong_limit(max_drop_pp: float, max_drop_by: str) -> None:
    """Raise where a limit on top-1 makes no sense.

    Raises:
        UsageError: It is negative or not a number, or nothing of that name can be judged.
    """
    if not max_drop_pp >= 0:
        raise UsageError(f"max_drop_pp is {max_drop_pp!r}, expected a limit that is not negative")
    if max_drop_by not in get_args(DropBy):
        raise UsageError(f"max_drop_by is {max_drop_by!r}, expected {' or '.join(map(repr, get_args(DropBy)))}")


def share_text(row: Row, least: float) -> str:
    """Return which share of the baseline's top-1 a row keeps where that is below ``least``, else ""."""
    if row.top1 is None or row.delta_top1_pp is None:
        return ""
    reference = row.top1 - row.delta_top1_pp / 100
    if reference <= 0 or row.top1 >= least * reference * (1 - 1e-9):
        return ""
    return f"{row.name} keeps {row.top1 / reference:.4f} of the baseline's top-1, at least {least:g} is asked for"


def drop_text(name: str, delta_pp: float | None, interval: Interval | None, limit: float, by: DropBy) -> str:
    """Return how much more top-1 a candidate lost than ``limit``, "" where it did not; all in percentage points."""
    if delta_pp is None:
        return ""
    if by == "point":
        return f"{name} lost {-delta_pp:.2f} pp of top-1, allowed {limit:g}" if -delta_pp > limit else ""
    if interval is None:
        return f"the change of {name} has no interval in this report"
    lost = -interval[0]
    return (
        f"{name} may have lost up to {lost:.2f} pp of top-1 (95 % interval), allowed {limit:g}" if lost > limit else ""
    )


def _cells(row: Row, baseline: str | None) -> tuple[str, ...]:
    """Return a row as a notebook shows it: medians end to end, a dash where nothing was measured."""
    times = [timing for timing in row.timings if timing.scope == "end_to_end"]
    runtime = BACKEND_TITLES.get(row.backend, row.backend)
    status = "" if row.status == "ok" else f"\n{row.status}: {row.reason}"
    return (
        row.name + status,
        runtime if row.device is None else f"{runtime}, {row.device.upper()}",
        row.precision,
        percent_text(row.top1),
        "baseline" if row.name == baseline else points_text(row.delta_top1_pp),
        "\n".join(str(timing.batch) for timing in times) or UNKNOWN,
        "\n".join(ms_text(timing.p50_ms) for timing in times) or UNKNOWN,
        "\n".join(ratio_text(timing.speedup) for timing in times) or UNKNOWN,
        size_text(row.size_bytes),
    )
