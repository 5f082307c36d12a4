"""Rows of one model that are given other pixels: what differs between them may be the preprocessing alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitdeploy.benching.measuring import Entry
from vitdeploy.records import ModelSpec, Preprocess

PLACES = {"source", "input", "frame"}
"""Of a ``Preprocess``: where it was read, and which of its steps the graph computes; the pixels are the same."""


def note_other_preprocessing(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Add a note to each entry that prepares images otherwise than the first one of its architecture.

    Returns:
        Sentences for the verdict, each once.
    """
    first: list[Entry] = []
    found: list[str] = []
    for entry in sorted(entries, key=lambda one: not one.is_baseline):
        own = entry.candidate
        same = next(
            (one.candidate for one in first if _architecture(one.candidate.model) == _architecture(own.model)), None
        )
        if same is None:
            first.append(entry)
        elif changed := _changed(same.preprocess, own.preprocess):
            text = f"{own.name} prepares images otherwise than {same.name} ({changed})"
            entry.notes.append(f"{text}: the difference may be the preprocessing's alone")
            found.append(f"{text}, so a difference between them may be the preprocessing's alone.")
    return tuple(dict.fromkeys(found))


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
