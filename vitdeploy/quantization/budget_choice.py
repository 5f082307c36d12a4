"""Which of the measured candidates is written, and the reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.measure.certainty import least_samples
from vitdeploy.quantization.budget_plans import FP32
from vitdeploy.records import FrontCandidate
from vitdeploy.text import UNKNOWN
from vitdeploy.wording import number_text, points_range_text, points_text, ratio_text, speed_text

EQUALLY_FAST = 0.01
"""Candidates whose times differ by less than this share count as equally fast; the one with less error is taken."""


@dataclass(frozen=True)
class Limits:
    """What was asked for: the budget, on so many images, timed at that place."""

    max_drop_pp: float
    images: int
    place: str


def with_front(candidates: Sequence[FrontCandidate]) -> list[FrontCandidate]:
    """Return the candidates, marking those than which none is at least as fast with less error."""

    def is_beaten(one: FrontCandidate) -> bool:
        return any(
            other is not one and (other.speedup or 0.0) >= (one.speedup or 0.0) and _error(other) < _error(one)
            for other in candidates
        )

    return [
        one.model_copy(update={"on_front": not one.failure and one.speedup is not None and not is_beaten(one)})
        for one in candidates
    ]


def beside_one_base(candidates: Sequence[FrontCandidate]) -> list[FrontCandidate]:
    """Return the candidates with times on one scale: the FP32 graph's, divided by each speed-up.

    They were timed in turns of several rounds, each beside the FP32 graph, and a machine is not equally fast in all of
    them: only ratios within a round can be compared.
    """
    base = next(one.p50_ms for one in candidates if one.name == FP32)
    return [
        one
        if base is None or not one.speedup or one.name == FP32
        else one.model_copy(update={"p50_ms": base / one.speedup})
        for one in candidates
    ]


def choose(candidates: Sequence[FrontCandidate], max_drop_pp: float) -> tuple[FrontCandidate, bool]:
    """Return the candidate to write, and whether it is within the budget.

    The fastest finalist; the FP32 graph itself where nothing is faster than it. Else the best that was found,
    which is not within the budget: the fastest whose measured drop is, or the one with the least error.
    """
    (base,) = (one for one in candidates if one.name == FP32)
    timed = [one for one in candidates if one is not base and not one.failure and one.speedup is not None]
    faster = [one for one in timed if (one.speedup or 0.0) > 1.0]
    finalists = [one for one in faster if one.finalist]
    if finalists:
        return _fastest(finalists), True
    if not faster:
        return base, True
    likely = [one for one in faster if one.delta_top1_pp is not None and -one.delta_top1_pp <= max_drop_pp]
    return (_fastest(likely) if likely else min(faster, key=_error)), False


def _fastest(candidates: Sequence[FrontCandidate]) -> FrontCandidate:
    best = max(one.speedup or 0.0 for one in candidates)
    equal = [one for one in candidates if (one.speedup or 0.0) >= best * (1 - EQUALLY_FAST)]
    return min(equal, key=_error)


def _error(candidate: FrontCandidate) -> float:
    if candidate.logits_identical or candidate.name == FP32:
        return 0.0
    return math.inf if candidate.logits_sqnr_db is None else 10 ** (-candidate.logits_sqnr_db / 10)


def verdict(
    candidates: Sequence[FrontCandidate], chosen: FrontCandidate, is_within: bool, limits: Limits
) -> tuple[str, ...]:
    """Return what was found, in words."""
    lines = []
    if chosen.name == FP32:
        best = max((one for one in candidates if one.name != FP32 and one.speedup), key=_speed, default=None)
        runner_up = "" if best is None else f", the next is {best.name} at {ratio_text(best.speedup)}"
        lines.append(f"FP32 is the fastest on {limits.place}{runner_up}: the graph is written as it is")
    elif is_within:
        lines.append(
            f"{chosen.name} is the fastest within {limits.max_drop_pp:g} pp on {limits.place}: {_gains(chosen, limits)}"
        )
    else:
        lines.append(_not_certified(candidates, chosen, limits))
    for one in candidates:
        if not one.high and one.precision not in ("fp32", "fp16") and chosen.precision in ("fp32", "fp16"):
            share = _speed(chosen) / _speed(one) if _speed(one) else math.nan
            if share > 1:
                words = f"{number_text(share)} times the time of {chosen.name}"
                lines.append(f"{one.name} is not faster here: it takes {words}")
    lines += [f"{one.name}: {one.failure}" for one in candidates if one.failure]
    return tuple(lines)


def too_few_images(images: int, max_drop_pp: float) -> str:
    """Return why so many images cannot certify a budget whatever is found; empty where they can."""
    least = least_samples(max_drop_pp / 100)
    if images >= least:
        return ""
    return (
        f"{images} images cannot certify a drop of at most {max_drop_pp:g} pp, {least} are needed even where no "
        "prediction changes"
    )


def _not_certified(candidates: Sequence[FrontCandidate], chosen: FrontCandidate, limits: Limits) -> str:
    reason = too_few_images(limits.images, limits.max_drop_pp)
    if not reason:
        reason = f"nothing faster than FP32 is certain to drop by at most {limits.max_drop_pp:g} pp"
    needed = [one for one in candidates if one.images_needed is not None and _speed(one) > 1]
    if needed:
        nearest = min(needed, key=lambda one: one.images_needed or 0)
        reason += (
            f"; about {nearest.images_needed} would certify {nearest.name} if predictions went on to change as rarely"
        )
    return f"{reason}; the best found is {chosen.name}: {_gains(chosen, limits)}"


def by_speed(one: FrontCandidate) -> float:
    """Sort the fastest first, those without a time last."""
    return -_speed(one)


def by_error(one: FrontCandidate) -> float:
    """Sort the least error of the logits first."""
    return _error(one)


def _gains(one: FrontCandidate, limits: Limits) -> str:
    speed = UNKNOWN if one.speedup is None else speed_text(one.speedup, one.speedup_ci95, "FP32")
    return (
        f"{speed}, top-1 {points_text(one.delta_top1_pp)} pp "
        f"({points_range_text(one.delta_ci95_pp)}) on {limits.images} images"
    )


def _speed(one: FrontCandidate) -> float:
    return one.speedup or 0.0
