"""Keep what was observed so far, so that a calibration that was killed goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vitdeploy.artifacts import CalibrationTable, read_calibration_table, write_calibration_table
from vitdeploy.artifacts.calibration_table import SUFFIX, arrays_of
from vitdeploy.errors import ArtifactError
from vitdeploy.quantization.collector import Observers
from vitdeploy.quantization.table import observers_of, ranges_of
from vitdeploy.records import Manifest, ModelSpec

SAVE_EVERY_S = 20.0
LARGEST_SHARE = 0.02
"""Of the time that observing takes, at most this is spent on saving."""
_SLOTS = ("a", "b")


class SavedObservations:
    """Two hidden tables beside an output, written in turn, so that a kill at any moment leaves a whole one.

    ``key`` says what is calibrated; what was saved for anything else is ignored, and so is a damaged file. Nothing is
    written in the first 20 s.
    """

    def __init__(self, output: Path, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._key, self._clock = Path(output), key, clock
        self._last = clock()
        self._cost = 0.0
        self._turn = 0

    def restore(self, part: str) -> tuple[Observers | None, int]:
        """Return the observers of ``part`` and how many images they have seen; None and 0 where nothing was saved."""
        best: CalibrationTable | None = None
        for slot in _SLOTS:
            try:
                table = read_calibration_table(self._path(part, slot))
            except ArtifactError:
                continue
            if table.manifest.key == self._key and (best is None or _seen(table) > _seen(best)):
                best = table
                self._turn = 1 - _SLOTS.index(slot)
        return (None, 0) if best is None else (observers_of(best.ranges), _seen(best))

    def save(self, part: str, observers: Observers, seen: int) -> None:
        """Write ``observers`` where that is due."""
        start = self._clock()
        if start - self._last < max(SAVE_EVERY_S, self._cost / LARGEST_SHARE):
            return
        manifest = Manifest(
            kind="calibration-table",
            key=self._key,
            model=ModelSpec(family="", name=""),
            options={"part": part, "seen": seen},
        )
        write_calibration_table(self._path(part, _SLOTS[self._turn]), ranges_of(observers), manifest)
        self._turn = 1 - self._turn
        self._last = self._clock()
        self._cost = self._last - start

    def remove(self) -> None:
        """Remove all that was saved for this output."""
        for path in self._output.parent.glob(f".{self._output.name}.*{SUFFIX}"):
            arrays_of(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _path(self, part: str, slot: str) -> Path:
        return self._output.with_name(f".{self._output.name}.{part}.{slot}{SUFFIX}")


def _seen(table: CalibrationTable) -> int:
    return int(table.manifest.options["seen"])
