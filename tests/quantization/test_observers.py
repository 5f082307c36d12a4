import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitdeploy.errors import CalibrationError
from vitdeploy.quantization.affine import dequantize_affine, quantize_affine, scale_of
from vitdeploy.quantization.observers import BINS, METHODS, HistogramObserver, TensorObserver
from vitdeploy.records.precision import RangeMethod

pytestmark = pytest.mark.slow

streams = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)),
    min_size=1,
    max_size=6,
)
pictures = st.lists(
    hnp.arrays(np.float32, st.just((70, 3)), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6
)
"""Images of 70 rows, more than a histogram takes of one."""


def observed(arrays, axis: int | None = -1) -> TensorObserver:
    observer = TensorObserver("t", axis)
    for array in arrays:
        observer.update(array)
    return observer


def keys_of(images):
    return np.array([hash(image.tobytes()) & (2**64 - 1) for image in images], np.uint64)


def watched(images, size: int = 1, most_rows: int = 4) -> TensorObserver:
    """Observe images [rows, C] in batches."""
    observer = TensorObserver("t", most_rows=most_rows)
    for start in range(0, len(images), size):
        batch = np.stack(images[start : start + size])
        observer.update(batch, keys_of(batch))
    return observer


def state(observer: TensorObserver):
    return (
        observer.lo.tolist(),
        observer.hi.tolist(),
        observer.count,
        observer.histogram.exponent,
        observer.histogram.counts.tolist(),
        observer.sample.keys.tolist(),
        observer.sample.rows.tolist(),
    )


@given(pictures, st.randoms())
def test_order_of_images_does_not_matter(images, random) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)
    assert state(watched(images)) == state(watched(shuffled))


@given(pictures, st.integers(1, 6), st.sampled_from([4, 16, 100]))
def test_way_of_batching_does_not_matter(images, size, most_rows) -> None:
    assert state(watched(images, size, most_rows)) == state(watched(images, 1, most_rows))


@given(streams)
def test_without_images_every_value_counts_in_any_batches(stream) -> None:
    whole = np.concatenate(stream)
    assert state(observed(stream)) == state(observed([whole])) == state(observed(list(whole[:, None])))


@given(pictures, pictures, st.sampled_from([4, 16, 100]))
def test_merged_observers_are_the_observer_of_both_streams(first, second, most_rows) -> None:
    merged = watched(first, most_rows=most_rows)
    merged.merge(watched(second, most_rows=most_rows))
    assert state(merged) == state(watched(first + second, most_rows=most_rows))


@pytest.mark.parametrize(("channels", "few", "many"), [(64, 2400, 8192), (512, 1024, 4 * 512), (3072, 168, 170 * 16)])
def test_rounding_weights_together_gets_several_rows_a_channel_in_bounded_memory(channels, few, many) -> None:
    images = np.random.default_rng(0).standard_normal((600 if channels < 3072 else 200, 17, channels), np.float32)
    for most_rows, expected in ((4, few), (16, many)):
        sample = watched(list(images), 50, most_rows).sample
        assert sample.rows.shape[1] == most_rows
        assert len(sample.images) * most_rows == min(expected, len(images) * most_rows)
        assert sample.keys.tolist() == sorted(keys_of(images).tolist())[: len(sample.images)]


def test_a_merge_of_many_images_keeps_the_sample_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.quantization.observers._SAMPLE_VALUES", 5 * 4 * 3)
    images = list(np.random.default_rng(0).standard_normal((40, 70, 3)).astype(np.float32))
    whole, first, second = watched(images, 8), watched(images[:13], 4), watched(images[13:], 3)
    first.merge(second)
    assert state(first) == state(whole)
    assert whole.sample.keys.tolist() == sorted(keys_of(images).tolist())[:5]
    rows = {tuple(row) for image in images for row in image.tolist()}
    assert whole.sample.rows.shape == (5, 4, 3)
    assert {tuple(row) for row in whole.sample.rows.reshape(-1, 3).tolist()} <= rows


def test_parts_of_other_widths_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="3 channels in one part and 4 in the other"):
        observed([np.ones((2, 3))]).merge(observed([np.ones((2, 4))]))


@given(streams)
def test_range_is_exact(stream) -> None:
    whole = np.concatenate(stream)
    observer = observed(stream)
    assert observer.lo.tolist() == whole.min(axis=0).tolist()
    assert observer.hi.tolist() == whole.max(axis=0).tolist()
    assert observer.clip("minmax") == observer.amax == np.abs(whole).max()
    assert observer.channel_amax.tolist() == np.abs(whole).max(axis=0).tolist()


def test_rows_that_are_left_out_of_the_histogram_still_count_in_the_range() -> None:
    image = np.zeros((1000, 3), np.float32)
    image[617, 1] = -7
    observer = watched([image])
    assert (observer.lo.tolist(), observer.count) == ([0, -7, 0], 3000)
    assert observer.histogram.counts.sum() == 64 * 3


def test_channels_may_run_over_another_axis_or_none() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert observed([x], axis=1).hi.tolist() == [15, 19, 23]
    assert observed([x], axis=None).hi.tolist() == [23]
    observer = TensorObserver("t", 1)
    observer.update(x, np.array([5, 6], np.uint64))
    assert observer.sample.rows.shape == (2, 4, 3)
    assert {tuple(row) for row in observer.sample.rows[0].tolist()} == {tuple(row) for row in x[0].T.tolist()}


@given(streams)
def test_histogram_counts_every_value_in_its_bin(stream) -> None:
    magnitudes = np.abs(np.concatenate(stream)).ravel().astype(np.float64)
    histogram = observed(stream).histogram
    assert histogram.counts.sum() == magnitudes.size
    if histogram.exponent is None:
        assert not magnitudes.any()
        return
    expected, _ = np.histogram(magnitudes, bins=BINS, range=(0, 2.0**histogram.exponent))
    assert np.array_equal(histogram.counts, expected)
    assert 2.0 ** (histogram.exponent - 1) <= max(magnitudes.max(), 2.0**-101) < 2.0**histogram.exponent


def test_memory_does_not_grow_with_the_stream() -> None:
    observer = TensorObserver("t")
    for index in range(200):
        observer.update(np.full((4, 3), index * index, np.float32))
    assert observer.histogram.counts.shape == (BINS,)
    assert observer.lo.shape == (3,)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([50.0, 90.0, 99.0, 99.9]))
def test_percentile_is_within_a_bin_of_the_sorted_values(seed, percent) -> None:
    x = np.random.default_rng(seed).standard_t(4, 5000).astype(np.float32)
    observer = observed([x])
    ordered = np.sort(np.abs(x))
    position = int(np.ceil(len(x) * percent / 100)) - 1
    assert abs(observer.clip("percentile", percent=percent) - ordered[position]) <= observer.histogram.width


def test_percentile_100_is_the_largest_value() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert observed([x]).clip("percentile", percent=100.0) == np.abs(x).max()


def test_mse_clip_beats_minmax_where_there_is_an_outlier() -> None:
    rng = np.random.default_rng(1)
    x = np.append(rng.standard_normal(400_000), 30.0).astype(np.float32)
    observer = observed([x])

    def error(clip: float) -> float:
        scale = scale_of(clip, steps=127)
        return float(np.square(x - dequantize_affine(quantize_affine(x, scale), scale), dtype=np.float64).mean())

    best = min(error(30.0 * factor) for factor in np.geomspace(1.0, 0.05, 200))
    assert error(observer.clip("mse")) < 0.5 * error(observer.clip("minmax"))
    assert error(observer.clip("mse")) <= 1.02 * best


def test_mse_keeps_the_whole_range_of_evenly_spread_values() -> None:
    x = np.linspace(-3, 3, 50_001, dtype=np.float32)
    assert observed([x]).clip("mse") == pytest.approx(3.0, rel=0.05)


def test_entropy_clips_a_long_thin_tail_and_keeps_a_range_that_is_full() -> None:
    rng = np.random.default_rng(2)
    tail = np.append(rng.standard_normal(400_000), 30.0).astype(np.float32)
    assert 3 < observed([tail]).clip("entropy") < 12
    full = np.linspace(-3, 3, 50_001, dtype=np.float32)
    assert observed([full]).clip("entropy") == pytest.approx(3.0, rel=0.05)


@settings(max_examples=30)
@given(streams, st.sampled_from(METHODS))
def test_no_method_clips_above_the_largest_value_or_at_zero(stream, method) -> None:
    observer = observed(stream)
    clip = observer.clip(method)
    assert clip <= observer.amax
    assert clip > 0 or observer.amax == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_scales_the_clip(method: RangeMethod, scale: float) -> None:
    x = np.random.default_rng(3).standard_t(3, 20_000).astype(np.float32)
    factor = 2.0 ** round(np.log2(scale))
    assert observed([x * factor]).clip(method) == pytest.approx(observed([x]).clip(method) * factor, rel=1e-6)


def test_zeros_only_give_a_clip_of_zero() -> None:
    observer = observed([np.zeros((4, 3), np.float32)])
    assert [observer.clip(method) for method in METHODS] == [0.0] * 4


def test_denormal_values_do_not_break_the_histogram() -> None:
    observer = observed([np.full((2, 2), 1e-44, np.float32), np.ones((1, 2), np.float32)])
    assert observer.histogram.counts.sum() == 6
    assert observer.clip("minmax") == 1.0


@pytest.mark.parametrize(("value", "text"), [(np.nan, "has NaN"), (np.inf, "has an infinite"), (-np.inf, "infinite")])
def test_unusable_values_are_refused_by_tensor_name(value: float, text: str) -> None:
    observer = TensorObserver("blocks.0.attn/Reshape_out")
    with pytest.raises(CalibrationError, match=f"'blocks.0.attn/Reshape_out' {text}" if "has" in text else text):
        observer.update(np.array([[1.0, value]], np.float32))


def test_the_image_of_a_broken_value_is_named() -> None:
    x = np.zeros((3, 5, 2), np.float32)
    x[1, 4, 0] = np.nan
    with pytest.raises(CalibrationError, match="tensor 't' has NaN during calibration for photo 1, expected"):
        TensorObserver("t").update(x, np.arange(3, dtype=np.uint64), lambda index: f"photo {index}")


def test_tensor_that_was_never_seen_has_no_clip() -> None:
    with pytest.raises(CalibrationError, match="'t' was never seen"):
        TensorObserver("t").clip("minmax")


def test_growing_over_more_than_all_bins_keeps_every_count() -> None:
    histogram = HistogramObserver()
    histogram.update(np.full(5, 1e-20, np.float32))
    histogram.update(np.full(2, 1e20, np.float32))
    assert histogram.counts[0] == 5
    assert histogram.counts.sum() == 7
