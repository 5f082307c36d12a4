"""Rows of one model that are given other pixels: what differs between them may be the preprocessing alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitdeploy.benching.candidates import Candidate
from vitdeploy.benching.measuring import Entry
from vitdeploy.records import ModelSpec, Preprocess

PLACES = {"source", "input", "frame"}
"""Of a ``Preprocess``: where it was read, and which of its steps the graph computes; the pixels are the same."""


def other_preprocessing(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return a sentence for all artifacts that prepare images in one way, another than the first of their architecture.

    The rows of an artifact in several runtimes count once.
    """
    first: list[Entry] = []
    found: dict[tuple[str, str], list[str]] = {}
    for entry in sorted(entries, key=lambda one: not one.is_baseline):
        own = entry.candidate
        same = next(
            (one.candidate for one in first if _architecture(one.candidate.model) == _architecture(own.model)), None
        )
        if same is None:
            first.append(entry)
        elif changed := _changed(same.preprocess, own.preprocess):
            names = found.setdefault((_file(same), changed), [])
            names += [_file(own)] * (_file(own) not in names)
    return tuple(
        f"{', '.join(names)} {'prepares' if len(names) == 1 else 'prepare'} images otherwise than {other} ({changed}), "
        "so a difference between them may be the preprocessing's alone."
        for (other, changed), names in found.items()
    )


def _file(candidate: Candidate) -> str:
    """Return what a row is called without what runs it: ``vit.onnx`` for ``vit.onnx (OpenVINO, CPU)``."""
    file = "" if candidate.artifact is None else candidate.artifact.path.name
    return candidate.name[: candidate.name.index(file) + len(file)] if file else candidate.name


def _architecture(model: ModelSpec) -> tuple[str, str, dict[str, Any]]:
    arguments = {name: value for name, value in model.arguments.items() if name != "num_classes"}
    return model.family, model.name if model.family == "onnx" else "", arguments


def _changed(one: Preprocess | None, other: Preprocess | None) -> str:
    """Return which steps differ, with the values of ``other``, then of ``one``; empty where none does."""
    if one is None or other is None:
        return ""
    before, after = (spec.model_dump(exclude=PLACES) for spec in (one, other))
    names = [name for name in Preprocess.model_fields if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {_text(after.get(name))} against {_text(before.get(name))}" for name in names)


def _text(value: Any) -> str:
    return str([round(one, 4) for one in value]) if isinstance(value, tuple) else str(value)
