"""What a model is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from vitdeploy.records.base import Record

Task = Literal["single-label", "multi-label", "binary", "regression", "features"]
Activation = Literal["none", "softmax", "sigmoid"]
_HEAD = ("task", "activation")


class ModelSpec(Record):
    """Architecture and classes: enough to build the module again, without its weights.

    ``family`` is a key of the model registry (``vit``, ``swin``, …), ``name`` the catalogue name or a free one, and
    ``arguments`` what the family's constructor takes (JSON values only; ``num_classes`` among them, how many outputs
    there are). ``classes`` names the classes in order; empty where the checkpoint does not say.

    ``task`` is what the outputs mean: one class of several (``single-label``), any number of classes
    (``multi-label``), one output for the second of two classes (``binary``), numbers (``regression``), or no classes
    (``features``). ``activation`` is what the model has applied to its logits already.
    """

    family: str
    name: str
    arguments: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    task: Task = "single-label"
    activation: Activation = "none"

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is usual of a head, so that digests of records from before it was recorded stay."""
        values: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in values.items()
            if name not in _HEAD or getattr(self, name) != fields[name].default
        }

    @property
    def title(self) -> str:
        """The name; where that is the family's alone, with what tells the model from others of it.

        Such as ``vit 32×32, patch 4, width 192, depth 6``.
        """
        if self.name != self.family:
            return self.name
        size = self.arguments.get("image_size")
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        sizes = [f"{width}×{height}"] if size is not None else []
        arguments = (f"{name} {self.arguments[name]}" for name in ("patch", "width", "depth") if name in self.arguments)
        return f"{self.name} {', '.join([*sizes, *arguments])}".strip()

    def class_name(self, index: int) -> str:
        """Return what the model calls a class; one without a name is ``class 17``."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"

    @property
    def class_count(self) -> int | None:
        """How many classes the model tells apart; None for a model without classes, and where it is not recorded."""
        if self.task in ("regression", "features"):
            return None
        if self.task == "binary":
            return 2
        count = self.arguments.get("num_classes")
        return len(self.classes) or (count if isinstance(count, int) and count > 0 else None)
