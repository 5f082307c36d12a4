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
