"""The verdict: which artifact to ship and why, in words, from the rows of a report alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from vitdeploy.measure.layer_changes import compare_profiles
from vitdeploy.records import Baseline, Conditions, Row, Timing
from vitdeploy.records.layer_profile import PARTS
from vitdeploy.records.report import Device, backend_title, executing_target
from vitdeploy.text import printable, size_text
from vitdeploy.wording import (
    decibel_text,
    ms_text,
    number_text,
    percent_text,
    points_range_text,
    points_text,
    ratio_text,
)

MAX_DROP_PP = 1.0
MIN_AGREEMENT = 0.99
MEDIAN_MARGIN = 0.05
# medians further apart than this are no tie, however wide their intervals are: then those say nothing
WIDEST_TIE = 1.25
MOST_PARTS = 3
MOST_CLASSES = 5
LEAST_OF_CLASS = 5
BUSY_CORES = 0.25
FEW_PRODUCTS = 0.1
# Of n images without one event: with 95 % confidence the event is rarer than 3/n (Hanley and Lippman-Hand 1983).
RULE_OF_THREE = 3
DEVICE_TITLES: dict[Device, str] = {"cpu": "CPU", "cuda": "GPU"}

Kept = Literal["kept", "small loss", "loss", "unknown"]


def give_verdict(rows: Sequence[Row], baseline: Baseline, conditions: Conditions) -> tuple[str, ...]:
    """Return sentences in the order in which a reader needs them.

    Whether the models know anything of these images, and which classes none of them does; what to ship on each device
    that was measured; which 8-bit products a runtime computes in floating point; where INT8 does not pay; what lost
    accuracy; what was built and not run, or not even built; what failed; what the numbers are against where that is not
    PyTorch.
    """
    measured = [row for row in rows if row.status == "ok"]
    sentences = [*_rows_at_chance(measured, conditions), *_unrecognised_classes(measured, conditions)]
    for device in dict.fromkeys(row.device for row in measured if row.device is not None):
        sentences.extend(
            _recommendations([row for row in measured if row.device == device], device, baseline, conditions)
        )
    if not measured:
        sentences.append("Nothing could be run on this machine, so nothing is recommended from measurements.")
    sentences.extend(_floating_products(measured))
    sentences.extend(_slow_int8(measured, baseline))
    sentences.extend(_accuracy_losses(measured, baseline))
    sentences.extend(_unmeasured_engines(rows))
    sentences.extend(_missing_engines(rows))
    sentences.extend(_weight_only(rows))
    sentences.extend(f"{row.name} failed: {row.reason.rstrip('.')}." for row in rows if row.status == "failed")
    sentences.extend(_caveats(measured, baseline, conditions))
    return tuple(sentences)


def accuracy_kept(row: Row, baseline: Baseline) -> Kept:
    """Return how a row's accuracy stands against the baseline's.

    ``loss``: more than 1 pp of top-1 on these images, whatever the interval; ``small loss``: less, but the interval
    excludes zero; without labels the same from agreement (0.99, and 0.97 for a small loss).
    """
    if is_baseline(row, baseline):
        return "kept"
    if row.delta_top1_pp is not None and row.delta_ci95_pp is not None:
        if row.delta_top1_pp < -MAX_DROP_PP:
            return "loss"
        return "small loss" if row.delta_ci95_pp[1] < 0 else "kept"
    if row.agreement is None:
        return "unknown"
    if row.agreement >= MIN_AGREEMENT:
        return "kept"
    return "small loss" if row.agreement >= 3 * MIN_AGREEMENT - 2 else "loss"


def at_chance(row: Row, conditions: Conditions) -> bool:
    """Return whether a row's top-1 is not shown to be better than answering with the most frequent class."""
    return conditions.chance is not None and row.top1_ci95 is not None and row.top1_ci95[0] <= conditions.chance


def is_baseline(row: Row, baseline: Baseline) -> bool:
    """Return whether a row is the baseline, on whichever device: others are compared with it, and it with none."""
    if row.name == baseline.row:
        return True
    return row.name in baseline.latency_rows.values() and row.delta_top1_pp is None and row.agreement is None


def is_faster(one: Row, other: Row, batch: int, baseline: Baseline) -> bool | None:
    """Return whether ``one`` is faster than ``other`` at ``batch``; None where that cannot be told.

    Told by the intervals of their speed-ups where both are against the same row, else by medians that differ by more
    than 5 %.
    """
    a, b = timing_of(one, batch), timing_of(other, batch)
    if a is None or b is None:
        return None
    against = baseline.latency_rows
    if against.get(one.name, one.name) == against.get(other.name, other.name):
        low_a, high_a = a.speedup_ci95 or (a.speedup or 1.0,) * 2
        low_b, high_b = b.speedup_ci95 or (b.speedup or 1.0,) * 2
        if low_a > high_b:
            return True
        return False if high_a < low_b else None
    ratio = b.p50_ms / a.p50_ms
    if ratio > 1 + MEDIAN_MARGIN:
        return True
    return False if ratio < 1 - MEDIAN_MARGIN else None


def timing_of(row: Row, batch: int) -> Timing | None:
    """Return a row's end-to-end timing at a batch size."""
    return next((timing for timing in row.timings if timing.batch == batch and timing.scope == "end_to_end"), None)


def on_target(row: Row) -> bool:
    """Return whether a row was run by the runtime that its graph was made for."""
    return row.target is None or row.target == executing_target(row.backend, row.provider)


def _recommendations(rows: Sequence[Row], device: Device, baseline: Baseline, conditions: Conditions) -> list[str]:
    where = f"On this {DEVICE_TITLES[device]}"
    sentences: list[str] = []
    previous: Row | None = None
    for batch in conditions.batches:
        timed = [row for row in rows if timing_of(row, batch) is not None and on_target(row)]
        useful = [row for row in timed if not at_chance(row, conditions)]
        unknown = [row for row in useful if accuracy_kept(row, baseline) == "unknown"]
        if unknown and all(row in unknown or is_baseline(row, baseline) for row in useful):
            sentences.append(_only_fidelity(unknown, batch, where))
            continue
        fit = [row for row in useful if accuracy_kept(row, baseline) in ("kept", "small loss")]
        if not fit:
            if useful:
                sentences.append(
                    f"{where}, no artifact is known to keep the accuracy at batch {batch}: none is recommended."
                )
            continue
        best = _best(fit, batch, baseline)
        if previous is None or best.name != previous.name:
            elsewhere = [row.name for row in rows if timing_of(row, batch) is not None and not on_target(row)]
            sentences.append(_recommendation(best, fit, batch, where, baseline, elsewhere, len(timed)))
            previous = best
        elif len(conditions.batches) > 1:
            sentences.append(f"At batch {batch} it is {best.name} as well ({_speed(best, batch)}).")
        sentences.extend(_too_wide(fit, batch, baseline, where))
    return sentences


def _only_fidelity(rows: Sequence[Row], batch: int, where: str) -> str:
    """Say how near the outputs are where there is neither top-1 nor agreement, as of models with many labels."""
    listed = ", ".join(
        f"{row.name} {decibel_text(row.logits_sqnr_db, row.logits_identical)} ({_speed(row, batch)})" for row in rows
    )
    return (
        f"{where}, nothing is recommended at batch {batch}: only the fidelity of the outputs is known, not what it "
        f"means for the task. SQNR and speed: {listed}."
    )


def _rows_at_chance(rows: Sequence[Row], conditions: Conditions) -> list[str]:
    """Name the rows not shown to be better than chance: what they keep and how fast they are is worth nothing."""
    known = [row for row in rows if row.top1 is not None]
    lost = [row for row in known if at_chance(row, conditions)]
    if not lost:
        return []
    chance = percent_text(conditions.chance)
    if len(lost) == len(known):
        best = max(lost, key=lambda row: row.top1 or 0.0)
        assert best.top1_ci95 is not None
        low, high = (percent_text(limit) for limit in best.top1_ci95)
        return [
            f"Ship none of these: no model is shown to be better than chance on the {conditions.n_samples} images "
            f"(the best top-1 is {percent_text(best.top1)}, 95 % interval {low} to {high}; always answering with the "
            f"most frequent class gives {chance}). Are weights, labels and preprocessing those of the model?"
        ]
    verb = "is" if len(lost) == 1 else "are"
    return [f"{_list([row.name for row in lost])} {verb} not shown to be better than chance ({chance})."]


def _unrecognised_classes(rows: Sequence[Row], conditions: Conditions) -> list[str]:
    """Name the classes of which no row has one image right: a label may be another than the model's."""
    counts = [row.correct_by_class or () for row in rows]
    known = [one for one in counts if len(one) == len(conditions.classes)]
    if not known or all(at_chance(row, conditions) for row in rows):
        return []
    lost = [
        f"{printable(one.name)} (0 of {one.images})"
        for one, *right in zip(conditions.classes, *known, strict=True)
        if one.images >= LEAST_OF_CLASS and not any(right)
    ]
    if not lost:
        return []
    shown, more = lost[:MOST_CLASSES], len(lost) - MOST_CLASSES
    listed = _list([*shown, *([f"{more} more"] if more > 0 else [])])
    return [f"No row has one image of {listed} right: are these the classes that the model was trained on?"]


def _best(rows: Sequence[Row], batch: int, baseline: Baseline) -> Row:
    """Return the fastest, or of those that tie with it the one that keeps most.

    That is: no loss of accuracy before a small one, floating point before integers, then the smaller file. A tie is
    one by intervals and, since those may be so wide that they say nothing, by medians too. What another row beats in
    every respect is never returned.
    """

    def p50(row: Row) -> float:
        return _p50(row, batch)

    def worth(row: Row) -> tuple[bool, bool, float, float]:
        lossless = accuracy_kept(row, baseline) == "kept"
        return not lossless, row.precision not in ("fp32", "fp16"), row.size_bytes or math.inf, p50(row)

    fastest = min(rows, key=p50)
    near = [row for row in rows if p50(row) <= WIDEST_TIE * p50(fastest)]
    near = [row for row in near if not any(_dominates(other, row, batch, baseline) for other in rows)]
    return min((row for row in near if row is fastest or not is_faster(fastest, row, batch, baseline)), key=worth)


def _dominates(one: Row, other: Row, batch: int, baseline: Baseline) -> bool:
    """Return whether ``one`` has the smaller median, is no larger a file, and keeps at least as much."""
    if _p50(one, batch) >= _p50(other, batch) or (one.size_bytes or math.inf) > (other.size_bytes or math.inf):
        return False
    kept: tuple[Kept, ...] = ("kept", "small loss", "loss", "unknown")
    grades = [kept.index(accuracy_kept(row, baseline)) for row in (one, other)]
    if one.top1 is not None and other.top1 is not None:
        return grades[0] <= grades[1] and one.top1 >= other.top1
    shares = [1.0 if is_baseline(row, baseline) else row.agreement or 0.0 for row in (one, other)]
    return grades[0] <= grades[1] and shares[0] >= shares[1]


def _too_wide(rows: Sequence[Row], batch: int, baseline: Baseline, where: str) -> list[str]:
    """Say so where intervals do not even tell rows apart whose medians are far from each other."""
    fastest = min(rows, key=lambda row: _p50(row, batch))
    far = [row for row in rows if _p50(row, batch) > WIDEST_TIE * _p50(fastest, batch)]
    lost = [row for row in far if is_faster(fastest, row, batch, baseline) is None]
    if not lost:
        return []
    listed = _list([f"{row.name} ({_ms(row, batch)})" for row in lost])
    return [
        f"{where}, the intervals at batch {batch} are too wide to say whether {fastest.name} "
        f"({_ms(fastest, batch)}) is faster than {listed}: bench again on an idle machine, with more rounds."
    ]


def _recommendation(
    best: Row, fit: Sequence[Row], batch: int, where: str, baseline: Baseline, elsewhere: Sequence[str], measured: int
) -> str:
    if is_baseline(best, baseline):
        if len(fit) == 1 and elsewhere:
            verb = "was" if len(elsewhere) == 1 else "were"
            return (
                f"{where}, keep the baseline {best.name} ({_speed(best, batch)}): {', '.join(elsewhere)} {verb} made "
                "for another runtime and not considered here."
            )
        if measured == 1:
            return f"{where}, nothing but {best.name} was measured at batch {batch} ({_speed(best, batch)})."
        if len(fit) == 1:
            return f"{where}, only the baseline {best.name} keeps the accuracy: ship it ({_speed(best, batch)})."
        return (
            f"{where}, keep the baseline {_title(best)} at batch {batch}: nothing that keeps its accuracy is faster "
            f"({_speed(best, batch)})."
        )
    timing = timing_of(best, batch)
    shown = timing is None or timing.speedup_ci95 is None or timing.speedup_ci95[0] > 1
    title = _title(best)
    choice = f"ship {title}" if shown else f"{title} is first, but not shown to be faster than the baseline"
    parts = [f"{where}, {choice}: {_speed(best, batch)} at batch {batch}"]
    if best.top1 is not None and best.delta_top1_pp is not None and best.delta_ci95_pp is not None:
        change = "the same as the baseline" if best.delta_top1_pp == 0 else f"{points_text(best.delta_top1_pp)} pp"
        interval = points_range_text(best.delta_ci95_pp)
        parts.append(f"top-1 {percent_text(best.top1)}, {change} (95 % interval {interval} pp)")
    elif best.agreement is not None:
        parts.append(f"it agrees with the baseline on {percent_text(best.agreement, 1)} of the images")
    other = next((row for row in fit if is_baseline(row, baseline)), None)
    if best.size_bytes and other is not None and other.size_bytes:
        parts.append(f"{size_text(best.size_bytes)} instead of {size_text(other.size_bytes)}")
    if accuracy_kept(best, baseline) == "small loss":
        parts.append("the loss is small but real")
    return "; ".join(parts) + "."


def _floating_products(rows: Sequence[Row]) -> list[str]:
    """Name the rows whose runtime computes some of the graph's 8-bit products from dequantized values."""
    sentences = []
    for row in rows:
        census = row.census
        if census is None or not census.floating:
            continue
        first, few = census.floating[0], len(census.floating) <= FEW_PRODUCTS * census.planned
        so = "" if few else ", so its time is not that of INT8"
        sentences.append(
            f"{backend_title(row.backend)} computes {len(census.floating)} of the {census.planned} 8-bit products of "
            f"{row.name} in floating point{so}: first {first.node}, as "
            f"{first.kernel or 'an unknown kernel'} ({first.reason})."
        )
    return sentences


def _slow_int8(rows: Sequence[Row], baseline: Baseline) -> list[str]:
    """Compare INT8 with FP16, else FP32, on the same runtime; on transformers INT8 is often the slower one."""
    sentences: list[str] = []
    for int8 in (row for row in rows if row.precision == "int8" and on_target(row)):
        beside = [row for row in rows if _runtime(row) == _runtime(int8) and on_target(row)]
        beside = [row for row in beside if row.model_number == int8.model_number]
        rival = next((row for high in ("fp16", "fp32") for row in beside if row.precision == high), None)
        if rival is None:
            continue
        batches = [timing.batch for timing in int8.timings if timing.scope == "end_to_end"]
        batches = [batch for batch in batches if timing_of(rival, batch) is not None]
        slower = [batch for batch in batches if is_faster(rival, int8, batch, baseline)]
        even = [batch for batch in batches if is_faster(rival, int8, batch, baseline) is None]
        name, high = f"INT8 under {backend_title(int8.backend)}", rival.precision.upper()
        if slower:
            times = ", ".join(f"{_ms(int8, batch)} against {_ms(rival, batch)} at batch {batch}" for batch in slower)
            sentences.append(
                f"{name} is slower than {high} ({times}). On transformers it often is: every border between INT8 and "
                f"{high} costs time, and small matrix products save little. Take {high} unless size matters most."
            )
        if even:
            at = ", ".join(map(str, even))
            sentences.append(f"{name} is not measurably faster than {high} at batch {at}: what it saves there is size.")
        if slower or even:
            sentences.extend(_lost_time(rival, int8))
    return sentences


def _lost_time(rival: Row, int8: Row) -> list[str]:
    """Return in which parts of the model INT8 takes longer, where both were profiled."""
    change = compare_profiles(rival, int8)
    parts = [] if change is None else sorted(change.parts, key=lambda one: one.before_ms - one.after_ms)
    lost = [one for one in parts if one.after_ms > one.before_ms][:MOST_PARTS]
    if change is None or not lost or change.after_ms <= change.before_ms:
        return []
    where = ", ".join(f"{PARTS[one.part]} +{ms_text(one.after_ms - one.before_ms)} ms" for one in lost)
    return [f"By its layers, {int8.name} loses time in: {where} against {rival.name}."]


def _accuracy_losses(rows: Sequence[Row], baseline: Baseline) -> list[str]:
    sentences = []
    for row in rows:
        if accuracy_kept(row, baseline) != "loss":
            continue
        if row.delta_top1_pp is not None and row.delta_ci95_pp is not None:
            loss = f"{points_text(row.delta_top1_pp)} pp of top-1 ({points_range_text(row.delta_ci95_pp)})"
            sure = "" if row.delta_ci95_pp[1] < 0 else ", although so few images do not prove it"
        else:
            loss, sure = f"it agrees with the baseline on only {percent_text(row.agreement, 1)} of the images", ""
        sentences.append(f"{row.name} is not recommended: {loss}{sure}.")
    return sentences


def _unmeasured_engines(rows: Sequence[Row]) -> list[str]:
    built: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "built":
            built.setdefault(row.reason.rstrip("."), []).append(row.name)
    sentences = []
    for reason, names in built.items():
        verb, pronoun = ("was", "it") if len(names) == 1 else ("were", "them")
        sentences.append(
            f"{_list(names)} {verb} built and not run, so neither speed nor accuracy is known: {reason}. "
            f"Bench {pronoun} on the device."
        )
    return sentences


def _missing_engines(rows: Sequence[Row]) -> list[str]:
    """Return a sentence per reason for the engines that there are none of: rows without a payload."""
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "skipped" and row.payload_sha256 is None:
            absent.setdefault(row.reason.rstrip("."), []).append(row.name)
    return [
        f"{_list(names)} {'was' if len(names) == 1 else 'were'} not built: {reason}."
        for reason, names in absent.items()
    ]


def _weight_only(rows: Sequence[Row]) -> list[str]:
    rtx = [row for row in rows if row.backend == "tensorrt-rtx"]
    int8 = [row for row in rtx if row.precision == "int8"]
    if not int8:
        return []
    fp16 = [row for row in rtx if row.precision == "fp16"]
    take = f"take {_list([row.name for row in fp16])} (FP16)" if fp16 else "build the FP16 graph"
    saves = "smaller weights"
    if fp16 and (int8[0].size_bytes or 0) >= (fp16[0].size_bytes or math.inf):
        saves = (
            f"smaller weights at best (here {size_text(int8[0].size_bytes)} against {size_text(fp16[0].size_bytes)})"
        )
    return [
        f"TensorRT-RTX documents its INT8 as weight-only ({_list([row.name for row in int8])}): {saves}, not faster "
        f"arithmetic. For speed {take}, or FP8 on compute capability 8.9 and newer."
    ]


def _caveats(rows: Sequence[Row], baseline: Baseline, conditions: Conditions) -> list[str]:
    sentences = []
    others = conditions.other_load_cores
    if others is not None and others > BUSY_CORES and any(row.timings for row in rows):
        sentences.append(
            f"Other processes kept {others:.1f} cores busy while times were taken: bench again on an idle machine "
            f"before you rely on them."
        )
    sentences.extend(_drifts(rows))
    sentences.extend(_throttled(rows))
    sentences.extend(_self_check_findings(rows, conditions))
    sentences.extend(_different_models(rows))
    if not baseline.accuracy_against.startswith("PyTorch eager"):
        sentences.append(f"Differences in accuracy are against {baseline.accuracy_against.rstrip('.')}.")
    least = math.ceil(RULE_OF_THREE * 100 / MAX_DROP_PP)
    if conditions.n_samples < least and any(not is_baseline(row, baseline) for row in rows):
        unseen = number_text(RULE_OF_THREE * 100 / conditions.n_samples)
        sentences.append(
            f"The test set is small: with {conditions.n_samples} images a drop of {unseen} pp can go unseen, "
            f"even where no answer changes; {number_text(MAX_DROP_PP)} pp takes at least {least} images."
        )
    if rows and all(row.top1 is None for row in rows) and conditions.chance is None:
        sentences.append("The data has no labels: fidelity to the baseline is known, accuracy is not.")
    return sentences


def _different_models(rows: Sequence[Row]) -> list[str]:
    """Say which rows are one model where they are several: only within one is a difference that of a precision."""
    models: dict[int, list[str]] = {}
    for row in rows:
        models.setdefault(row.model_number, []).append(row.name)
    if len(models) < 2:
        return []
    listed = "; ".join(_list(names) for names in models.values())
    return [
        f"The rows are {len(models)} different models: {listed}. Only within a model is INT8 compared with FP16 or "
        "FP32 and are outputs compared by agreement and SQNR; a difference in top-1 from another is one of the models."
    ]


def _drifts(rows: Sequence[Row]) -> list[str]:
    """Name the rows whose median moved over the run by more than 3 % and by more than its interval is wide.

    A row is named once at a batch, by its largest move: its times with copies and without move together.
    """
    moved: dict[tuple[str, int], float] = {}
    for row in rows:
        for timing in row.timings:
            if timing.drift is None or timing.p50_ci95 is None:
                continue
            change, place = abs(timing.drift - 1), (row.name, timing.batch)
            beyond = change * timing.p50_ms > timing.p50_ci95[1] - timing.p50_ci95[0]
            if change > 0.03 and beyond and change > abs(moved.get(place, 1.0) - 1):
                moved[place] = timing.drift
    if not moved:
        return []
    listed = _list([f"{name} at batch {batch} ({ratio_text(drift)})" for (name, batch), drift in moved.items()])
    return [
        f"Times drifted over the run by more than their intervals, from its first third to its last: {listed}. "
        "Speed-ups compare the same rounds."
    ]


def _throttled(rows: Sequence[Row]) -> list[str]:
    """Name the rows that a device slowed down, and those that grew slower while they ran without a pause."""
    sentences = []
    held: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        reasons = dict.fromkeys(reason for timing in row.timings for reason in timing.throttled)
        if reasons:
            held.setdefault(tuple(reasons), []).append(row.name)
    for reasons_seen, names in held.items():
        sentences.append(f"The device slowed itself down while {_list(names)} ran ({', '.join(reasons_seen)}).")
    for row in rows:
        if row.sustained is not None and row.sustained.slowdown > 1 + MEDIAN_MARGIN:
            sentences.append(
                f"{row.name} became {row.sustained.slowdown - 1:.0%} slower over {row.sustained.seconds:.0f} s "
                "without a pause: expect that on a device that never rests."
            )
    return sentences


def _self_check_findings(rows: Sequence[Row], conditions: Conditions) -> list[str]:
    sentences = []
    check = conditions.self_check
    if check is not None and check.ratio_ci95 is not None and not check.ratio_ci95[0] <= 1 <= check.ratio_ci95[1]:
        sentences.append(
            f"{check.row} was timed twice in this run and differs from itself: {ratio_text(check.ratio)} (95 % "
            f"interval {number_text(check.ratio_ci95[0])} to {number_text(check.ratio_ci95[1])}). Differences of that "
            "size mean nothing here."
        )
    for row in rows:
        for timing in row.timings:
            limits = timing.alone_ci95
            if timing.scope != "end_to_end" or limits is None or timing.alone_ratio is None:
                continue
            if limits[0] > 1 + MEDIAN_MARGIN or limits[1] < 1 - MEDIAN_MARGIN:
                sentences.append(
                    f"{row.name} takes {ratio_text(timing.alone_ratio)} as long in turns as alone at batch "
                    f"{timing.batch} (95 % interval {number_text(limits[0])} to {number_text(limits[1])})."
                )
    return sentences


def _runtime(row: Row) -> tuple[str, str | None, Device | None]:
    return row.backend, row.provider, row.device


def _title(row: Row) -> str:
    return f"{row.name} under {backend_title(row.backend)}"


def _speed(row: Row, batch: int) -> str:
    timing = timing_of(row, batch)
    assert timing is not None
    if timing.speedup is None:
        return _ms(row, batch)
    interval = ""
    slower = timing.speedup < 1  # what is slower is said by its time, as ``speed_text`` does
    if timing.speedup_ci95 is not None:
        low, high = timing.speedup_ci95 if not slower else (1 / value for value in reversed(timing.speedup_ci95))
        interval = f" (95 % interval {number_text(low)} to {number_text(high)})"
    ratio = f"{ratio_text(1 / timing.speedup)} the time of" if slower else f"{ratio_text(timing.speedup)} as fast as"
    return f"{ratio} the baseline{interval}, {_ms(row, batch)}"


def _p50(row: Row, batch: int) -> float:
    timing = timing_of(row, batch)
    assert timing is not None
    return timing.p50_ms


def _ms(row: Row, batch: int) -> str:
    return f"{ms_text(_p50(row, batch))} ms"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
