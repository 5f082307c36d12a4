"""Numbers as people read them, what was not measured as a dash, never 0; and advice that many messages give."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.text import UNKNOWN

Interval = tuple[float, float]
MINUS = "\N{MINUS SIGN}"


def ms_text(value: float | None) -> str:
    """Return milliseconds with three significant digits: ``0.312``, ``12.5``, ``1250``."""
    if value is None:
        return UNKNOWN
    digits = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"


def number_text(value: float, digits: int = 2) -> str:
    """Return a number with ``digits`` decimals, from 100 on with none."""
    return f"{value:.{digits if abs(value) < 99.95 else 0}f}"


def percent_text(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction as ``98.67 %``."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f} %"


def points_text(points: float | None) -> str:
    """Return a difference in percentage points with its sign: ``+0.22``, ``−1.10``, ``0.00``."""
    if points is None:
        return UNKNOWN
    text = f"{abs(points):.2f}"
    if text == "0.00":
        return text
    return f"{'+' if points > 0 else MINUS}{text}"


def points_range_text(interval: Interval | None) -> str:
    """Return an interval of percentage points: ``−0.85 to +0.42``."""
    return UNKNOWN if interval is None else f"{points_text(interval[0])} to {points_text(interval[1])}"


def ratio_text(ratio: float | None) -> str:
    """Return a speed-up: ``2.31×``."""
    return UNKNOWN if ratio is None else f"{number_text(ratio)}×"


def speed_text(ratio: float, interval: Interval | None = None, base: str = "", digits: int = 2) -> str:
    """Return how fast something is beside ``base``, by the ratio of speeds.

    ``1.44× [1.32, 1.69] as fast as FP32``; of what is slower the time: ``slower: 1.75× [1.71, 1.80] the time of FP32``,
    and without that word where the interval holds 1.
    """
    slower = ratio < 1
    values = [ratio, *(interval or ())]
    shown = [number_text(1 / value if slower else value, digits) for value in values]
    low, high = (shown[2], shown[1]) if slower and interval is not None else (*shown[1:], "", "")[:2]
    around = f" [{low}, {high}]" if interval is not None else ""
    if slower:
        certain = interval is None or interval[1] < 1
        return "slower: " * certain + f"{shown[0]}×{around} the time" + f" of {base}" * bool(base)
    return f"{shown[0]}×{around} as fast" + f" as {base}" * bool(base)


def duration_text(seconds: float) -> str:
    """Return a rough duration: ``8 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 10 * 3600 else f"{round(seconds / 3600)} h"


def decibel_text(sqnr_db: float | None, identical: bool | None) -> str:
    """Return a signal-to-noise ratio: ``42.1 dB``, or ``exact`` where nothing differs."""
    if identical:
        return "exact"
    return UNKNOWN if sqnr_db is None else f"{sqnr_db:.1f} dB"


def adoption(path: Path | str, preprocess: str = "timm:NAME|hf:DIR|FILE") -> str:
    """Return the call that gives an ONNX file from elsewhere a manifest, and with it its preprocessing.

    A configuration that lies beside the file is taken without being named. A name that stands for any file has none.
    """
    beside = Path(path).is_file() and Path(path).with_name("preprocessor_config.json").is_file()
    if preprocess.startswith("timm:NAME") and beside:
        return f"vd.export({str(path)!r}, 'adopted.onnx')"
    return f"vd.export({str(path)!r}, 'adopted.onnx', options=vd.ExportOptions(preprocess={preprocess!r}))"
