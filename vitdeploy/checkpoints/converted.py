"""What a dialect makes of a weight file: our tensors, and what they and their configuration tell of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitdeploy.checkpoints.files import Tensors
from vitdeploy.checkpoints.positions import ResizeRule
from vitdeploy.records import Preprocess

Preprocessing = Literal["catalogue", "torchvision", "google", "unstated"]


@dataclass(frozen=True)
class Converted:
    """Weights under our names.

    ``arguments`` are constructor arguments read off the shapes; ``overrides`` those that the code base fixes (eps) or
    that a configuration states, which win over the catalogue. ``complete`` says that a configuration gave them all, so
    that no catalogue name is needed. ``position_tokens`` maps each position table to its rows without a place in the
    grid. ``dropped`` maps tensors that are left out to the reason. ``preprocess`` is the file's own record;
    ``preprocessing`` the convention of the code base where it has none. ``notes`` say what was assumed.
    """

    tensors: Tensors
    arguments: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False
    classes: tuple[str, ...] = ()
    position_tokens: Mapping[str, int] = field(default_factory=dict)
    resize_rule: ResizeRule = "bicubic"
    table_rule: Literal["bicubic", "geometric"] = "bicubic"
    dropped: Mapping[str, str] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    preprocessing: Preprocessing = "catalogue"
    notes: tuple[str, ...] = ()
