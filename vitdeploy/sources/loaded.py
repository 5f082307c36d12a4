"""A model that was loaded, and what the loaders share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitdeploy.artifacts.digest import tensors_digest
from vitdeploy.records import ModelSpec, Preprocess, TrainingData
from vitdeploy.records.manifest import identity_of
from vitdeploy.text import printable

if TYPE_CHECKING:
    from torch import nn

IMAGENET_CLASSES = 1000
_COUNTERS = ".num_batches_tracked"


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model that is ready to run.

    module: in evaluation mode, on the CPU, mapping [B, C, H, W] normalised float32 to logits [B, classes].
    weights_sha256: over the weights by name, dtype, shape and bytes, as in a checkpoint of ours.
    origin: where model and weights come from, in words.
    notes: what was decided on the way and should be said: a dialect, a preprocessing that the file does not carry.
    trained_on: the trainings behind the weights that a checkpoint of ours states.
    """

    module: nn.Module
    spec: ModelSpec
    preprocess: Preprocess
    weights_sha256: str
    origin: str
    notes: tuple[str, ...] = field(default=())
    trained_on: tuple[TrainingData, ...] = ()

    @property
    def digest(self) -> str:
        """That of the checkpoint that ``convert`` writes of it."""
        return identity_of(self.weights_sha256, self.spec, self.preprocess, self.trained_on)

    def __repr__(self) -> str:
        return printable(f"<LoadedModel {self.spec.name!r}: {self.origin}, {self.digest[:12]}>")


@dataclass(frozen=True)
class Weights:
    """Which weights a named model gets: ``file``, fresh ones from ``seed``, or with neither those its hub publishes."""

    file: Any = None
    random: bool = False
    seed: int = 0

    def describe(self, published: str) -> str:
        """Return the choice in words."""
        if self.random:
            return "random weights"
        return published if self.file is None else f"weights of {self.file.name}"


RANDOM_NOTE = "the weights are random: graph, size and speed are those of the model, accuracy is none"


def digest_of(module: nn.Module) -> str:
    """Return the digest of all parameters and buffers that a state dict holds."""
    return tensors_digest({name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()})


def class_names(classes: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 classes, which is what 1000 logits mean in this field, else none."""
    from vitdeploy.datasets import imagenet_labels

    return imagenet_labels() if classes == IMAGENET_CLASSES else ()


def fill(module: nn.Module, tensors: Mapping[str, Any], where: str) -> None:
    """Copy arrays into a module, every one into its place; counters of batch norms, which no logit needs, may lack.

    Raises:
        CheckpointError: Names or shapes differ, or weights are no floating-point numbers.
    """
    import numpy as np
    import torch

    from vitdeploy.checkpoints.matching import check_match, check_numbers

    state = module.state_dict()
    tensors = {name: tensors[name] for name in tensors if not name.endswith(_COUNTERS)}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTERS)}
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    check_match(found, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    check_numbers(arrays, {name for name, tensor in state.items() if tensor.is_floating_point()}, where)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.as_tensor(tensors[name]))
