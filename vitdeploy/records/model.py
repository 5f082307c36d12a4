"""What a model is."""

from __future__ import annotations

from typing import Any

from vitdeploy.records.base import Record


class ModelSpec(Record):
    """Architecture and classes: enough to build the module again, without its weights.

    ``family`` is a key of the model registry (``vit``, ``swin``, …), ``name`` the catalogue name or a free one, and
    ``arguments`` what the family's constructor takes (JSON values only; ``num_classes`` among them).
    ``classes`` names the logits in order; empty where the checkpoint does not say.
    """

    family: str
    name: str
    arguments: dict[str, Any] = {}
    classes: tuple[str, ...] = ()

    @property
    def class_count(self) -> int | None:
        """How many classes the model tells apart; None where that is not recorded."""
        count = self.arguments.get("num_classes")
        return len(self.classes) or (count if isinstance(count, int) and count > 0 else None)
