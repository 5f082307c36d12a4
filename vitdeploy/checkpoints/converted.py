"""What a dialect makes of weights: our tensors, and what they and their configuration tell of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitdeploy.checkpoints.files import Tensors
from vitdeploy.checkpoints.positions import ResizeRule
from vitdeploy.records import Preprocess


@dataclass(frozen=True)
class Converted:
    """Weights under our names.

    ``arguments`` are constructor arguments read off the shapes; ``overrides`` those that the code base fixes (eps) or
    that a configuration states, which win over the catalogue. ``complete`` says that a configuration gave them all, so
    that no catalogue name is needed. ``proven`` are arguments that no shape of a weight shows and a table proves, with
    the table's name: windows, the image's size; ``tables`` are those that the model makes itself, for comparison.
    ``unknown`` names arguments that change logits and that nothing here tells; ``usual`` maps others, which the code
    base lets one choose and none of its published models does, to what these have. ``position_tokens`` maps each
    position table to its rows without a place in the grid. ``dropped`` maps tensors that are left out to the reason.
    ``head_problem`` says why the head cannot be taken. ``preprocess`` is the file's own record; ``convention`` names
    that of the code base, for weights without one. ``notes`` say what was decided.
    """

    tensors: Tensors
    arguments: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False
    proven: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    tables: Tensors = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    usual: Mapping[str, Any] = field(default_factory=dict)
    position_tokens: Mapping[str, int] = field(default_factory=dict)
    resize_rule: ResizeRule = "bicubic"
    table_rule: Literal["bicubic", "geometric"] = "bicubic"
    dropped: Mapping[str, str] = field(default_factory=dict)
    head_problem: str = ""
    preprocess: Preprocess | None = None
    convention: str = ""
    notes: tuple[str, ...] = ()
