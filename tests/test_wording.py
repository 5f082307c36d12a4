import pytest

from vitdeploy import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "0.031"),
        (0.9996, "1.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (1234.5, "1234"),
        (None, "–"),
    ],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert wording.ms_text(value) == text


def test_differences_have_their_sign_and_zero_has_none() -> None:
    assert [wording.points_text(value) for value in (0.224, -1.1, 0.0, -0.001, None)] == [
        "+0.22",
        "−1.10",
        "0.00",
        "0.00",
        "–",
    ]
    assert wording.points_range_text((-0.5, 0.25)) == "−0.50 to +0.25"


def test_what_was_not_measured_is_a_dash_and_identical_logits_are_exact() -> None:
    assert wording.percent_text(None) == wording.ratio_text(None) == wording.decibel_text(None, None) == "–"
    assert wording.decibel_text(None, True) == "exact"
    assert wording.decibel_text(42.123, False) == "42.1 dB"
    assert wording.percent_text(0.98671) == "98.67 %"
    assert wording.ratio_text(2.3149) == "2.31×"


@pytest.mark.parametrize(
    ("ratio", "interval", "base", "text"),
    [
        (1.444, (1.32, 1.69), "FP32", "1.44× [1.32, 1.69] as fast as FP32"),
        (0.8, (0.75, 0.9), "FP32", "slower: 1.25× [1.11, 1.33] the time of FP32"),
        (0.8, (0.5, 1.25), "FP32", "1.25× [0.80, 2.00] the time of FP32"),
        (1.0, None, "", "1.00× as fast"),
        (0.5, None, "", "slower: 2.00× the time"),
    ],
)
def test_what_is_slower_has_its_time(ratio: float, interval: tuple[float, float] | None, base: str, text: str) -> None:
    assert wording.speed_text(ratio, interval, base) == text
