"""The single durations behind a report: ``report.samples.npz``, one line per call in columns of equal length."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitdeploy.artifacts.files import FilesTogether
from vitdeploy.benching.measuring import Entry
from vitdeploy.records.report import SAMPLES


def write_samples(entries: Sequence[Entry], folder: Path, files: FilesTogether) -> str:
    """Write every counted call of every row and return the SHA-256 of the file.

    Its arrays: ``rows`` and ``scopes`` are names; ``row``, ``scope`` (indices of these), ``batch``, ``round`` and
    ``duration_ms`` have one value per call, in the order in which a row's calls were made. ``turn_row``,
    ``turn_scope``, ``turn_batch``, ``turn_round`` and ``clock_mhz``, ``temperature_c``, ``power_w`` have one value per
    turn: what the device's sensors said when it ended, NaN where there is none.

    Raises:
        ArtifactError: The folder cannot be written, or the disk is full.
    """
    names = [entry.candidate.name for entry in entries]
    scopes = sorted({scope for entry in entries for _, scope in entry.blocks})
    columns: dict[str, list[int]] = {"row": [], "scope": [], "batch": [], "round": []}
    durations: list[float] = []
    for row, entry in enumerate(entries):
        for (batch, scope), blocks in entry.blocks.items():
            for number, block in enumerate(blocks):
                values = {"row": row, "scope": scopes.index(scope), "batch": batch, "round": number}
                for name, value in values.items():
                    columns[name].extend([value] * block.size)
                durations.extend(block.tolist())
    turns: dict[str, list[int]] = {"turn_row": [], "turn_scope": [], "turn_batch": [], "turn_round": []}
    seen: dict[str, list[float]] = {"clock_mhz": [], "temperature_c": [], "power_w": []}
    for row, entry in enumerate(entries):
        for (batch, scope), readings in entry.readings.items():
            if (batch, scope) not in entry.blocks:
                continue
            for number, reading in enumerate(readings):
                place = (row, scopes.index(scope), batch, number)
                for name, value in zip(turns, place, strict=True):
                    turns[name].append(value)
                for name, known in seen.items():
                    found: float | None = getattr(reading, name)
                    known.append(math.nan if found is None else found)
    buffer = io.BytesIO()
    integers = {name: np.array(values, np.int32) for name, values in {**columns, **turns}.items()}
    readings_of = {name: np.array(values, np.float32) for name, values in seen.items()}
    np.savez_compressed(
        buffer,
        rows=np.array(names),
        scopes=np.array(scopes),
        duration_ms=np.array(durations, np.float64),
        **readings_of,  # type: ignore[arg-type]
        **integers,  # type: ignore[arg-type]  # its stub takes a keyword of its own, allow_pickle
    )
    return files.write(folder / SAMPLES, buffer.getvalue())
