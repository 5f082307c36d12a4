"""What the table, the Markdown and the page say alike: one wording for each thing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.measure.verdict import timing_of
from vitdeploy.records import Conditions, Environment, Interval, Report, Row, Timing
from vitdeploy.records.report import SelfCheck, backend_title, threads_text
from vitdeploy.text import UNKNOWN, size_text
from vitdeploy.wording import ms_text, number_text, percent_text, points_text

NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|pp|ms|B|kB|MB|GB|dB)\b|%)")
WARNING = re.compile(
    r"^The test set is small|^Ship none of these|not shown to be better than chance|^Other processes kept"
    r"|^Times drifted|differs from itself|says little about new images|that was trained there has seen them"
)
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
SCOPES = {"end_to_end": "end to end", "device": "on the device", "image_to_label": "image to label"}
STATUSES = {"ok": "measured", "built": "built, not run", "skipped": "skipped", "failed": "failed"}


@dataclass(frozen=True)
class Fact:
    """A name and what stands beside it."""

    name: str
    value: str


def runtime_text(row: Row) -> str:
    """Return which runtime on which device, and settings of threads that were chosen: ``ONNX Runtime · CPU``."""
    return " · ".join(filter(None, (runtime_name(row), row_threads(row))))


def runtime_name(row: Row) -> str:
    """Return which runtime on which device."""
    title = backend_title(row.backend)
    return f"{title} · {DEVICES[row.device]}" if row.device is not None else title


def row_threads(row: Row) -> str:
    """Return settings of threads that were chosen for a row, nothing where they were left to its runtime."""
    return threads_text(row.pinning, row.spinning)


def interval_text(interval: Interval | None, factor: float = 1.0, digits: int = 2) -> str:
    """Return ``[97.12, 99.38]``, nothing where there is no interval."""
    if interval is None:
        return ""
    low, high = (factor * value for value in interval)
    return f"[{number_text(low, digits)}, {number_text(high, digits)}]"


def ms_interval_text(interval: Interval | None) -> str:
    """Return ``[0.048, 0.052]`` with the digits that milliseconds have, nothing where there is no interval."""
    return "" if interval is None else f"[{ms_text(interval[0])}, {ms_text(interval[1])}]"


def points_interval_text(interval: Interval | None) -> str:
    """Return ``[−1.25, +0.64]``, nothing where there is no interval."""
    return "" if interval is None else f"[{points_text(interval[0])}, {points_text(interval[1])}]"


def first_timing(row: Row, conditions: Conditions) -> Timing | None:
    """Return the end-to-end timing at the first batch size that a row was timed at."""
    found = (timing_of(row, batch) for batch in conditions.batches)
    return next((timing for timing in found if timing is not None), None)


def timed_batches(report: Report) -> tuple[int, ...]:
    """Return the batch sizes for which any row has a time, in the order asked for."""
    return tuple(batch for batch in report.conditions.batches if any(timing_of(row, batch) for row in report.rows))


def condition_facts(report: Report) -> list[Fact]:
    """Return how the rows were measured."""
    found = report.conditions
    latency = report.baseline.latency_against
    turns = f"{found.rounds} shuffled rounds; a turn throws away at least {found.warmup} calls and counts "
    turns += f"{found.iterations}"
    if found.block_s is not None and found.fill_s is not None:
        turns += f" (fewer where they take more than {found.block_s:g} s, more where less than {found.fill_s:g} s)"
    others, cores = found.other_load_cores, report.environment.cores
    load = UNKNOWN if others is None else f"other processes kept {others:.2f} of {cores} cores busy while timing"
    facts = [
        Fact("Data", f"{found.data}, {found.n_samples} images"),
        Fact("Data digest", found.data_sha256[:16]),
        Fact("Accuracy against", report.baseline.accuracy_against),
        Fact("Speed-up against", latency if latency is not None else UNKNOWN),
        Fact("Batch sizes", ", ".join(map(str, found.batches))),
        Fact("CPU threads", str(found.threads) if found.threads else "each runtime's own choice"),
        Fact("Turns", turns),
        Fact("Other load", load),
        Fact("TF32", "allowed" if found.tf32 else "off in every row"),
        Fact("Seed", str(found.seed)),
    ]
    if found.governor is not None:
        facts.append(Fact("CPU governor", found.governor))
    for device, watts in found.idle_power_w.items():
        facts.append(Fact(f"{DEVICES[device]} idle power", f"{watts:.1f} W, part of every energy"))
    if found.self_check is not None:
        facts.append(Fact("Self-check", self_check_text(found.self_check)))
    if found.accuracy_batch is not None:
        facts.insert(5, Fact("Batch for accuracy", str(found.accuracy_batch)))
    return facts


def digest_facts(report: Report) -> list[Fact]:
    """Return what identifies each artifact that has a row: its digest, as ``inspect`` shows it."""
    found: dict[str, list[str]] = {}
    for row in report.rows:
        if row.payload_sha256 is not None:
            found.setdefault(row.payload_sha256, []).append(row.name)
    # rows of one artifact are told apart by what runs them: "vit.onnx (OpenVINO, CPU)"
    titles = {digest: names[0] if len(names) == 1 else names[0].rpartition(" (")[0] for digest, names in found.items()}
    return [Fact(title or found[digest][0], f"digest {digest}") for digest, title in titles.items()]


def self_check_text(check: SelfCheck) -> str:
    """Return what a candidate that took part twice says of the run."""
    ratio = f"{number_text(check.ratio)} {interval_text(check.ratio_ci95)}".rstrip()
    return f"{check.row} timed twice at batch {check.batch}: ratio {ratio}"


def environment_facts(machine: Environment) -> list[Fact]:
    """Return the machine, leaving out what it does not have."""
    gpu = machine.gpu or "none"
    if machine.compute_capability is not None:
        gpu += f", compute capability {machine.compute_capability}"
    if machine.gpu_memory_bytes is not None:
        gpu += f", {size_text(machine.gpu_memory_bytes)}"
    memory = f", {size_text(machine.memory_bytes)} memory" if machine.memory_bytes is not None else ""
    rest = {
        "Driver": machine.driver,
        "CUDA": machine.cuda,
        "TensorRT": machine.tensorrt,
        "JetPack": machine.jetpack,
        "Power mode": machine.power_mode,
    }
    return [
        Fact("CPU", f"{machine.cpu}, {machine.cores} cores{memory}"),
        Fact("GPU", gpu),
        *(Fact(name, value) for name, value in rest.items() if value is not None),
        Fact("System", f"{machine.os}, Python {machine.python}"),
    ]


def unbroken(text: str) -> str:
    """Return a text in which a number and its unit stay on one line."""
    return NUMBER_AND_UNIT.sub("\N{NO-BREAK SPACE}", text)


SHOWN_CLASSES = 20
"""How many classes a report lists before the rest is folded away."""


@dataclass(frozen=True)
class ClassLine:
    """A class of the data, its images, and for each row of ``rows_by_class`` how many are right."""

    name: str
    images: int
    cells: tuple[str, ...]


def rows_by_class(report: Report) -> list[Row]:
    """Return the rows whose right answers were counted by class."""
    return [row for row in report.rows if row.correct_by_class is not None and report.conditions.classes]


def class_lines(report: Report) -> list[ClassLine]:
    """Return the classes, worst first: by the lowest share of right answers that any row has.

    A cell has the number of right answers, their share, and the difference to the baseline's number where there is one.
    """
    rows = rows_by_class(report)
    base = next((row.correct_by_class for row in rows if row.name == report.baseline.row), None)
    found: list[tuple[float, ClassLine]] = []
    for index, (name, images) in enumerate((one.name, one.images) for one in report.conditions.classes):
        counts = [row.correct_by_class[index] for row in rows if row.correct_by_class is not None]
        if counts:
            expected = None if base is None else base[index]
            cells = tuple(_right_text(count, images, expected) for count in counts)
            found.append((min(counts) / images, ClassLine(name, images, cells)))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def _right_text(count: int, images: int, expected: int | None) -> str:
    change = "" if expected in (None, count) else f" {count - expected:+d}".replace("-", "−")
    return f"{count} ({percent_text(count / images, 0)}){change}"


def is_warning(text: str) -> bool:
    """Return whether a sentence of the verdict says that the numbers themselves are to be doubted."""
    return WARNING.search(text) is not None


def layers_text(row: Row) -> str:
    """Return the precision of an engine's layers: ``48 fp16, 3 fp32``, or why it is not known."""
    if row.precision_by_layer is not None:
        return ", ".join(f"{count} {name}" for name, count in row.precision_by_layer.items())
    return "not inspected" if row.inspected is False else UNKNOWN


def remarks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (names, text) for each reason and note in the order of the rows; what several share stands once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        reason = (f"{STATUSES[row.status]}: {row.reason}",) if row.reason else ()
        for text in (*reason, *row.notes):
            found.setdefault(text, []).append(row.name)
    return [(", ".join(names), text) for text, names in found.items()]


def latency_lines(report: Report) -> list[tuple[Row, Timing]]:
    """Return every timing with its row."""
    return [(row, timing) for row in report.rows for timing in row.timings]
