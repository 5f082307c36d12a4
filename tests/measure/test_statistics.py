import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.measure import statistics

pytestmark = pytest.mark.slow


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert statistics.wilson_interval(correct, n) == pytest.approx((low, high), abs=6e-5)
    assert statistics.wilson_interval(29, 29)[1] == 1.0
    assert statistics.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=6e-5)


def test_wilson_interval_refuses_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="5 correct of 4"):
        statistics.wilson_interval(5, 4)
    with pytest.raises(ValueError, match="0 correct of 0"):
        statistics.wilson_interval(0, 0)


def test_tango_interval_equals_published_values() -> None:
    # airway reactivity before and after transplantation, Fagerland et al. 2014, table VI: 1 against 7 of 21 pairs
    low, high = statistics.tango_interval(gained=1, lost=7, n=21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def test_tango_limits_are_where_a_brute_force_score_test_turns() -> None:
    """The constrained likelihood is maximised on a grid instead of by its formula."""
    gained, lost, n = 3, 9, 60
    same = n - gained - lost
    q = np.linspace(1e-9, 1, 400_001)

    def z_of(delta: float) -> float:
        up, rest = q + delta, 1 - 2 * q - delta
        ok = (up > 1e-12) & (rest > 1e-12)
        loglik = gained * np.log(up[ok]) + lost * np.log(q[ok]) + same * np.log(rest[ok])
        best = q[ok][loglik.argmax()]
        return float((gained - lost - n * delta) / math.sqrt(n * (2 * best + delta - delta**2)))

    low, high = statistics.tango_interval(gained, lost, n)
    assert z_of(low) == pytest.approx(statistics.Z95, abs=1e-3)
    assert z_of(high) == pytest.approx(-statistics.Z95, abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 400))
def test_tango_interval_holds_the_difference_and_mirrors_when_the_roles_are_swapped(
    gained: int, lost: int, same: int
) -> None:
    n = gained + lost + same + 1
    low, high = statistics.tango_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert low < high
    mirrored = statistics.tango_interval(lost, gained, n)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_without_any_discordant_pair_a_width_remains() -> None:
    low, high = statistics.tango_interval(0, 0, 450)
    assert high == pytest.approx(statistics.Z95**2 / (450 + statistics.Z95**2))
    assert low == pytest.approx(-high)


def test_tango_interval_covers_the_truth_in_about_95_of_100_experiments() -> None:
    rng = np.random.default_rng(7)
    n, share_gained, share_lost = 200, 0.02, 0.05
    counts = rng.multinomial(n, (share_gained, share_lost, 1 - share_gained - share_lost), size=4000)
    intervals = {pair: statistics.tango_interval(*pair, n) for pair in {(int(g), int(x)) for g, x, _ in counts}}
    hits = [intervals[int(g), int(x)] for g, x, _ in counts]
    coverage = np.mean([low <= share_gained - share_lost <= high for low, high in hits])
    assert 0.935 <= coverage <= 0.97


def test_paired_difference_counts_only_samples_on_which_the_two_differ() -> None:
    baseline = np.array([True] * 8 + [False] * 2)
    candidate = np.array([True] * 7 + [False] * 2 + [True])
    delta, interval = statistics.paired_difference(candidate, baseline)
    assert delta == pytest.approx(0.0)
    assert interval == pytest.approx(statistics.tango_interval(1, 1, 10))


def test_paired_difference_refuses_samples_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="two equal, non-empty vectors"):
        statistics.paired_difference(np.ones(3, bool), np.ones(4, bool))


@pytest.fixture(name="logits")
def _logits() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(200, 10)).astype(np.float32) * 4


CORRUPTIONS = {
    "zeros": lambda x: np.zeros_like(x),
    "rescale": lambda x: x * 1.5,
    "permuted classes": lambda x: x[:, np.random.default_rng(0).permutation(x.shape[1])],
    "permuted samples": lambda x: x[np.random.default_rng(0).permutation(x.shape[0])],
    "shift by one class": lambda x: np.roll(x, 1, axis=1),
    "shift by a constant": lambda x: x + 1,
    "negated": lambda x: -x,
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_logits_sqnr_rejects(name: str, logits: np.ndarray) -> None:
    assert statistics.logits_sqnr_db(CORRUPTIONS[name](logits), logits) < 15


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"rescale", "shift by a constant"}))
def test_agreement_rejects(name: str, logits: np.ndarray) -> None:
    assert statistics.agreement(CORRUPTIONS[name](logits), logits) < 0.3


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_agreement_and_sqnr_together_reject(name: str, logits: np.ndarray) -> None:
    """What agreement cannot see (the docstring says so), SQNR does."""
    bad = CORRUPTIONS[name](logits)
    assert min(statistics.agreement(bad, logits), statistics.logits_sqnr_db(bad, logits) / 30) < 0.5


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"rescale", "shift by a constant"}))
def test_paired_difference_rejects(name: str, logits: np.ndarray) -> None:
    """Labels are what the baseline says, so any corruption that changes ranks loses accuracy, beyond the interval."""
    labels = logits.argmax(axis=1)
    right = CORRUPTIONS[name](logits).argmax(axis=1) == labels
    delta, (_, high) = statistics.paired_difference(right, np.ones(len(labels), bool))
    assert delta < -0.5
    assert high < -0.4


def test_agreement_and_sqnr_accept_the_same_logits(logits: np.ndarray) -> None:
    assert statistics.agreement(logits.copy(), logits) == 1.0
    assert statistics.logits_sqnr_db(logits.copy(), logits) == math.inf


def test_sqnr_is_the_ratio_of_signal_to_noise(logits: np.ndarray) -> None:
    assert statistics.logits_sqnr_db(logits.astype(np.float64) * 1.01, logits) == pytest.approx(40.0, abs=1e-3)
    noisy = logits + np.random.default_rng(1).normal(size=logits.shape) * 0.04
    assert statistics.logits_sqnr_db(noisy, logits) == pytest.approx(40.0, abs=0.5)


def test_sqnr_is_not_a_number_where_it_has_no_meaning(logits: np.ndarray) -> None:
    assert math.isnan(statistics.logits_sqnr_db(logits, np.zeros_like(logits)))
    broken = logits.copy()
    broken[3, 4] = np.nan
    assert math.isnan(statistics.logits_sqnr_db(broken, logits))


def test_comparators_refuse_logits_of_another_shape(logits: np.ndarray) -> None:
    for compare in (statistics.agreement, statistics.logits_sqnr_db):
        with pytest.raises(ValueError, match="two equal, non-empty matrices"):
            compare(logits[:-1], logits)


def test_latency_takes_percentiles_over_all_blocks() -> None:
    blocks = [np.arange(1.0, 51.0), np.arange(51.0, 101.0)]
    result = statistics.latency(blocks)
    assert (result.p50_ms, result.mean_ms, result.calls) == (50.5, 50.5, 100)
    assert result.p90_ms == pytest.approx(90.1)
    assert result.p99_ms == pytest.approx(99.01)


@pytest.mark.parametrize("bad", [[], [0.0, 1.0], [1.0, math.nan]])
def test_latency_refuses_durations_that_cannot_be(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="positive finite duration"):
        statistics.latency([np.array(bad, dtype=np.float64)])


def _rounds(rng, median_ms: float, rounds: int = 10, calls: int = 20, drift: float = 0.0) -> list[np.ndarray]:
    state = 1 + drift * rng.normal(size=rounds)
    return [median_ms * s * (1 + 0.02 * np.abs(rng.normal(size=calls))) for s in state]


def test_speedup_is_the_ratio_of_medians_and_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    slow, fast = _rounds(rng, 10.0, drift=0.05), _rounds(rng, 4.0, drift=0.05)
    ratio, interval = statistics.speedup(fast, slow, seed=1)
    assert ratio == pytest.approx(2.5, rel=0.05)
    assert interval is not None
    assert interval[0] <= ratio <= interval[1]
    assert statistics.speedup(fast, slow, seed=1) == (ratio, interval)
    assert statistics.speedup(fast, slow, seed=2)[1] != interval


def test_speedup_interval_is_of_rounds_not_of_calls() -> None:
    """A thousand calls in each of few noisy rounds must not make the answer look certain."""
    rng = np.random.default_rng(5)
    few = statistics.speedup(_rounds(rng, 5.0, calls=1000, drift=0.1), _rounds(rng, 5.0, calls=1000, drift=0.1))[1]
    assert few is not None
    assert few[1] - few[0] > 0.05


def test_speedup_interval_covers_the_truth_in_about_95_of_100_experiments() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        intervals = statistics.speedup(
            _rounds(rng, 2.0, calls=7, drift=0.05), _rounds(rng, 5.0, calls=5, drift=0.05), seed=trial
        )[1]
        assert intervals is not None
        hits += intervals[0] <= 2.5 <= intervals[1]
    assert 0.91 <= hits / 300 <= 0.99


def test_speedup_interval_is_unknown_for_two_rounds_and_a_point_without_noise() -> None:
    blocks = [np.full(5, 2.0)] * 2
    assert statistics.speedup(blocks, blocks) == (1.0, None)
    assert statistics.speedup([np.full(5, 2.0)] * 4, [np.full(5, 5.0)] * 4) == (2.5, (2.5, 2.5))


def test_speedup_takes_blocks_of_different_lengths() -> None:
    ragged = [np.full(3, 2.0), np.full(5, 2.0), np.full(4, 2.0)]
    assert statistics.speedup(ragged, [np.full(2, 3.0)] * 3) == (1.5, (1.5, 1.5))


def test_speedup_refuses_rounds_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match="expected the same number"):
        statistics.speedup([np.ones(3)], [np.ones(3)] * 2)


def test_student_quantiles_equal_the_table() -> None:
    for degrees, value in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045)):
        assert statistics.student_t975(degrees) == pytest.approx(value, rel=4e-3)


def test_intervals_of_percentiles_hold_the_true_ones_about_as_often_as_they_say() -> None:
    """Rounds with a common offset each: calls of a round are alike, as on a real machine."""
    random = np.random.default_rng(3)
    held = {"p50": 0, "p90": 0}
    trials = 200
    draws = np.abs(10 + random.normal(0, 1, 200_000) + random.normal(0, 0.5, 200_000))
    truth = {"p50": float(np.percentile(draws, 50)), "p90": float(np.percentile(draws, 90))}
    for trial in range(trials):
        blocks = [np.abs(10 + random.normal(0, 0.5) + random.normal(0, 1, 20)) for _ in range(10)]
        found = statistics.latency(blocks, seed=trial)
        for name, interval in (("p50", found.p50_ci95), ("p90", found.p90_ci95)):
            assert interval is not None
            held[name] += interval[0] <= truth[name] <= interval[1]
    assert 0.88 <= held["p50"] / trials <= 1.0
    assert 0.85 <= held["p90"] / trials <= 1.0


def test_few_rounds_have_no_intervals_and_no_drift() -> None:
    found = statistics.latency([np.array([1.0, 2.0]), np.array([3.0])])
    assert (found.p50_ci95, found.p90_ci95, found.p99_ci95, found.drift) == (None, None, None, None)


def test_drift_is_the_last_third_over_the_first() -> None:
    blocks = [np.full(5, ms) for ms in (1.0, 1.0, 7.0, 7.0, 1.5, 1.5)]
    assert statistics.latency(blocks).drift == pytest.approx(1.5)


def test_kl_divergence_equals_hand_computed_values() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    exact = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert statistics.kl_divergence(q, p) == pytest.approx(exact / 2)
    assert statistics.kl_divergence(p, p) == 0
    assert statistics.kl_divergence(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])) == pytest.approx(12 * math.log(10))
    with pytest.raises(ValueError, match="two equal"):
        statistics.kl_divergence(p, q[:1])
