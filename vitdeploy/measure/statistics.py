"""Numbers with their uncertainty: accuracy, paired differences, fidelity of logits, latency, speed-up.

Every interval is two-sided 95 %. Accuracies and agreements are fractions in 0…1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = NormalDist().inv_cdf(0.975)
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_CHUNK_BYTES = 32 << 20
MIN_ROUNDS = 3
PERCENTILES = (50, 90, 99)
MIN_DRIFT_ROUNDS = 2

Interval = tuple[float, float]
Logits = NDArray[np.floating[Any]]


def wilson_interval(correct: int, n: int) -> Interval:
    """Return the interval of a proportion ``correct / n``.

    Wilson's score interval (JASA 22, 1927): unlike p ± z·√(p(1-p)/n) it never leaves 0…1 and does not shrink to a point
    at 100 %, where an accuracy on few images would look certain.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} correct of {n}: expected 0 <= correct <= n and n > 0")
    p, z2 = correct / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def paired_difference(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> tuple[float, Interval]:
    """Return accuracy(candidate) - accuracy(baseline) on the same samples, and its interval.

    candidate, baseline: [n], whether each sample was classified right.

    Tango's score interval (Statistics in Medicine 17, 1998, 891-908), which Fagerland, Lydersen and Laake (2014, same
    journal, 33, 2850-2875) recommend: only samples on which the two differ carry information, so it is much narrower
    than two separate intervals, and it keeps a width where no sample differs.
    """
    if candidate.shape != baseline.shape or candidate.ndim != 1 or not candidate.size:
        raise ValueError(f"shapes {candidate.shape} and {baseline.shape}: expected two equal, non-empty vectors")
    gained = int(np.sum(candidate & ~baseline))
    lost = int(np.sum(baseline & ~candidate))
    return (gained - lost) / candidate.size, tango_interval(gained, lost, candidate.size)


def tango_interval(gained: float, lost: float, n: int) -> Interval:
    """Return the interval of (gained - lost) / n, for ``n`` pairs of which ``gained + lost`` are discordant.

    A limit is the difference δ whose score statistic is ±z:
    (gained - lost - nδ) / √(n(2q + δ(1-δ))), where q is the maximum-likelihood estimate of the share of lost pairs
    given δ.
    """
    if min(gained, lost) < 0 or gained + lost > n or n == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {n}: expected counts that add up to at most n > 0")

    def score(delta: float) -> float:
        a, b, c = 2.0 * n, (2 * n - gained + lost) * delta - gained - lost, -lost * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        distance = gained - lost - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    point = (gained - lost) / n
    return (
        -1.0 if point == -1 else _root(lambda delta: score(delta) - Z95, -1.0, point),
        1.0 if point == 1 else _root(lambda delta: score(delta) + Z95, point, 1.0),
    )


def agreement(candidate: Logits, baseline: Logits) -> float:
    """Return the fraction of samples whose first-ranked class is the same; both are [n, classes].

    A positive rescale or an equal shift of all logits leaves it as it is; ``logits_sqnr_db`` stands beside it for that.
    """
    _same_shape(candidate, baseline)
    return float(np.mean(candidate.argmax(axis=1) == baseline.argmax(axis=1)))


def logits_sqnr_db(candidate: Logits, baseline: Logits) -> float:
    """Return 10·log10(Σ baseline² / Σ (candidate - baseline)²) over all samples and classes, in dB.

    Infinite where they are equal bit for bit, NaN where the baseline is zero everywhere or a logit is not finite.
    """
    _same_shape(candidate, baseline)
    reference = baseline.astype(np.float64)
    noise = float(np.sum(np.square(candidate.astype(np.float64) - reference)))
    signal = float(np.sum(np.square(reference)))
    if not math.isfinite(signal) or not math.isfinite(noise) or signal == 0:
        return math.nan
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def kl_divergence(candidate: NDArray[np.float64], baseline: NDArray[np.float64]) -> float:
    """Return the mean over samples of Σ p·ln(p / q) in nats: p are the baseline's probabilities, q the candidate's.

    candidate, baseline: [n, classes]. A class of the candidate below 1e-12 counts as that, so the result is finite.
    """
    if candidate.shape != baseline.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(f"{candidate.shape} and {baseline.shape}: expected two equal, non-empty matrices")
    p, q = np.maximum(baseline, 1e-12), np.maximum(candidate, 1e-12)
    return max(0.0, float(np.sum(p * np.log(p / q), axis=1).mean()))


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call over all blocks of a candidate.

    The intervals are None for fewer than three rounds. ``drift`` is the median of the last third of the rounds over
    that of the first, None for fewer than six; 1 is a machine that stayed as it was.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    calls: int
    p50_ci95: Interval | None = None
    p90_ci95: Interval | None = None
    p99_ci95: Interval | None = None
    drift: float | None = None


def latency(blocks: Sequence[NDArray[np.float64]], *, seed: int = 0) -> Latency:
    """Return percentiles with their intervals, and the mean, over the calls of all ``blocks``, in order of time.

    The intervals are bootstrapped over whole rounds, as ``speedup`` says.
    """
    calls = np.concatenate(blocks)
    if not calls.size or not np.isfinite(calls).all() or calls.min() <= 0:
        raise ValueError(f"{calls.size} calls, expected at least one, each of a positive finite duration")
    p50, p90, p99 = (float(value) for value in np.percentile(calls, PERCENTILES))
    around = _percentile_intervals(blocks, (p50, p90, p99), seed)
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(calls.mean()),
        calls=int(calls.size),
        p50_ci95=around[0],
        p90_ci95=around[1],
        p99_ci95=around[2],
        drift=_drift(blocks),
    )


def speedup(
    candidate: Sequence[NDArray[np.float64]], baseline: Sequence[NDArray[np.float64]], *, seed: int = 0
) -> tuple[float, Interval | None]:
    """Return median(baseline) / median(candidate) and its interval; None for fewer than three rounds.

    Both hold one block per round, of the same rounds. Calls within a block share the state of the machine, so whole
    rounds are resampled (the same for both, as they ran side by side), never calls: bootstrap over clusters. The
    percentiles are widened for the small number of rounds r as in Hesterberg 2015 (The American Statistician 69,
    371-386, section 5): α'/2 = Φ(-√(r/(r-1))·t) with t of r-1 degrees of freedom.
    """
    if len(candidate) != len(baseline) or not candidate:
        raise ValueError(f"{len(candidate)} and {len(baseline)} rounds: expected the same number, at least one")
    ratio = float(np.median(np.concatenate(baseline)) / np.median(np.concatenate(candidate)))
    rounds = len(candidate)
    if rounds < MIN_ROUNDS:
        return ratio, None
    picks = _picks(rounds, seed)
    medians = (_resampled_percentiles(blocks, picks, (50,))[:, 0] for blocks in (baseline, candidate))
    return ratio, _interval(next(medians) / next(medians), rounds, ratio)


def student_t975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, above that the expansion of Abramowitz and Stegun 26.7.5 (error < 0.3 %).
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z95, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _percentile_intervals(
    blocks: Sequence[NDArray[np.float64]], points: Sequence[float], seed: int
) -> list[Interval | None]:
    rounds = len(blocks)
    if rounds < MIN_ROUNDS:
        return [None for _ in points]
    resampled = _resampled_percentiles(blocks, _picks(rounds, seed), PERCENTILES)
    return [_interval(column, rounds, point) for column, point in zip(resampled.T, points, strict=True)]


def _drift(blocks: Sequence[NDArray[np.float64]]) -> float | None:
    third = len(blocks) // 3
    if third < MIN_DRIFT_ROUNDS:
        return None
    first, last = (np.median(np.concatenate(part)) for part in (blocks[:third], blocks[-third:]))
    return float(last / first)


def _picks(rounds: int, seed: int) -> NDArray[np.int64]:
    """Return which rounds each resample holds, [resamples, rounds]."""
    return np.random.default_rng(seed).integers(rounds, size=(BOOTSTRAP_RESAMPLES, rounds))


def _interval(resampled: NDArray[np.float64], rounds: int, point: float) -> Interval:
    """Return the interval of a bootstrap over ``rounds`` clusters, widened for their small number (see ``speedup``)."""
    tail = NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * student_t975(rounds - 1))
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return min(float(low), point), max(float(high), point)


def _resampled_percentiles(
    blocks: Sequence[NDArray[np.float64]], picks: NDArray[np.int64], percentiles: Sequence[float]
) -> NDArray[np.float64]:
    """Return percentiles [resamples, percentiles] of the picked blocks' calls, one row per row of ``picks``."""
    longest = max(block.size for block in blocks)
    table = np.full((len(blocks), longest), np.nan)
    for row, block in zip(table, blocks, strict=True):
        row[: block.size] = block
    percentile = np.nanpercentile if any(block.size != longest for block in blocks) else np.percentile
    chunk = max(1, BOOTSTRAP_CHUNK_BYTES // (8 * picks.shape[1] * longest))
    parts = [
        percentile(table[picks[start : start + chunk]].reshape(-1, picks.shape[1] * longest), percentiles, axis=1).T
        for start in range(0, len(picks), chunk)
    ]
    return np.concatenate(parts)


def _root(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing function crosses zero between ``low`` and ``high``, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _same_shape(candidate: Logits, baseline: Logits) -> None:
    if candidate.shape != baseline.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(f"logits {candidate.shape} and {baseline.shape}: expected two equal, non-empty matrices")


def fraction_of_range(apart: float, span: float) -> float:
    """Return a difference as a fraction of the logits' range; equal logits differ by 0 even where the range is 0."""
    if apart == 0.0:
        return 0.0
    return apart / span if span > 0.0 else float("inf")
