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


def decibel_text(sqnr_db: float | None, identical: bool | None) -> str:
    """Return a signal-to-noise ratio: ``42.1 dB``, or ``exact`` where nothing differs."""
    if identical:
        return "exact"
    return UNKNOWN if sqnr_db is None else f"{sqnr_db:.1f} dB"


def adoption(path: Path | str, preprocess: str = "timm:NAME|hf:DIR|FILE.json") -> str:
    """Return the call that gives an ONNX file from elsewhere a manifest, and with it its preprocessing.

    A configuration that lies beside the file is taken without being named.
    """
    if preprocess.startswith("timm:NAME") and Path(path).with_name("preprocessor_config.json").is_file():
        return f"vd.export({str(path)!r}, 'adopted.onnx')"
    return f"vd.export({str(path)!r}, 'adopted.onnx', options=vd.ExportOptions(preprocess={preprocess!r}))"
