import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitdeploy.errors import CalibrationError
from vitdeploy.quantization.affine import dequantize_affine, quantize_affine, scale_of
from vitdeploy.quantization.observers import BINS, HistogramObserver, TensorObserver

streams = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)),
    min_size=1,
    max_size=6,
)


def observed(arrays) -> TensorObserver:
    observer = TensorObserver("t")
    for array in arrays:
        observer.update(array)
    return observer


def state(observer: TensorObserver):
    return (
        observer.range.lo,
        observer.range.hi,
        observer.range.count,
        observer.histogram.exponent,
        observer.histogram.counts.tolist(),
        observer.channels.amax.tolist(),
    )


@given(streams, st.randoms())
def test_order_of_batches_does_not_matter(stream, random):
    shuffled = list(stream)
    random.shuffle(shuffled)
    assert state(observed(stream)) == state(observed(shuffled))


@given(streams)
def test_way_of_batching_does_not_matter(stream):
    whole = np.concatenate(stream)
    assert state(observed(stream)) == state(observed([whole])) == state(observed(list(whole[:, None])))


@given(streams, streams)
def test_merged_observers_are_the_observer_of_both_streams(first, second):
    merged = observed(first)
    merged.merge(observed(second))
    assert state(merged) == state(observed(first + second))


@given(streams)
def test_range_is_exact(stream):
    whole = np.concatenate(stream)
    observer = observed(stream)
    assert (observer.range.lo, observer.range.hi) == (whole.min(), whole.max())
    assert observer.clip("minmax") == np.abs(whole).max()
    assert observer.channels.amax.tolist() == np.abs(whole).max(axis=0).tolist()


@given(streams)
def test_histogram_counts_every_value_in_its_bin(stream):
    magnitudes = np.abs(np.concatenate(stream)).ravel().astype(np.float64)
    histogram = observed(stream).histogram
    assert histogram.counts.sum() == magnitudes.size
    if histogram.exponent is None:
        assert not magnitudes.any()
        return
    expected, _ = np.histogram(magnitudes, bins=BINS, range=(0, 2.0**histogram.exponent))
    assert np.array_equal(histogram.counts, expected)
    assert 2.0 ** (histogram.exponent - 1) <= max(magnitudes.max(), 2.0**-101) < 2.0**histogram.exponent


def test_memory_does_not_grow_with_the_stream():
    observer = TensorObserver("t")
    for index in range(200):
        observer.update(np.full((4, 3), index * index, np.float32))
    assert observer.histogram.counts.shape == (BINS,)
    assert observer.channels.amax.shape == (3,)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([50.0, 90.0, 99.0, 99.9]))
def test_percentile_is_within_a_bin_of_the_sorted_values(seed, percent):
    x = np.random.default_rng(seed).standard_t(4, 5000).astype(np.float32)
    observer = observed([x])
    ordered = np.sort(np.abs(x))
    position = int(np.ceil(len(x) * percent / 100)) - 1
    assert abs(observer.clip("percentile", percent=percent) - ordered[position]) <= observer.histogram.width


def test_percentile_100_is_the_largest_value():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert observed([x]).clip("percentile", percent=100.0) == np.abs(x).max()


def test_mse_clip_beats_minmax_where_there_is_an_outlier():
    rng = np.random.default_rng(1)
    x = np.append(rng.standard_normal(400_000), 30.0).astype(np.float32)
    observer = observed([x])

    def error(clip: float) -> float:
        scale = scale_of(clip, steps=127)
        return float(np.square(x - dequantize_affine(quantize_affine(x, scale), scale), dtype=np.float64).mean())

    best = min(error(30.0 * factor) for factor in np.geomspace(1.0, 0.05, 200))
    assert error(observer.clip("mse")) < 0.5 * error(observer.clip("minmax"))
    assert error(observer.clip("mse")) <= 1.02 * best


def test_mse_keeps_the_whole_range_of_evenly_spread_values():
    x = np.linspace(-3, 3, 50_001, dtype=np.float32)
    assert observed([x]).clip("mse") == pytest.approx(3.0, rel=0.05)


def test_zeros_only_give_a_clip_of_zero():
    observer = observed([np.zeros((4, 3), np.float32)])
    assert [observer.clip(method) for method in ("minmax", "percentile", "mse")] == [0.0, 0.0, 0.0]


def test_denormal_values_do_not_break_the_histogram():
    observer = observed([np.full((2, 2), 1e-44, np.float32), np.ones((1, 2), np.float32)])
    assert observer.histogram.counts.sum() == 6
    assert observer.clip("minmax") == 1.0


@pytest.mark.parametrize(("value", "text"), [(np.nan, "has NaN"), (np.inf, "has an infinite"), (-np.inf, "infinite")])
def test_unusable_values_are_refused_by_tensor_name(value, text):
    observer = TensorObserver("blocks.0.attn/Reshape_out")
    with pytest.raises(CalibrationError, match=f"'blocks.0.attn/Reshape_out' {text}" if "has" in text else text):
        observer.update(np.array([[1.0, value]], np.float32))


def test_tensor_that_was_never_seen_has_no_clip():
    with pytest.raises(CalibrationError, match="'t' was never seen"):
        TensorObserver("t").clip("minmax")


def test_growing_over_more_than_all_bins_keeps_every_count():
    histogram = HistogramObserver()
    histogram.update(np.full(5, 1e-20, np.float32))
    histogram.update(np.full(2, 1e20, np.float32))
    assert histogram.counts[0] == 5
    assert histogram.counts.sum() == 7
