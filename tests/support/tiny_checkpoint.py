"""A digits ViT of two blocks, small enough to be exported in a second."""

from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.artifacts import Checkpoint, write_checkpoint
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.records import Manifest, ModelSpec

TINY: dict[str, Any] = {
    "image_size": 8,
    "patch": 2,
    "channels": 1,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "num_classes": 10,
}


def write_tiny_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Checkpoint:
    """Write a digits ViT whose every tensor is redrawn: at initialisation zero biases would hide mistakes."""
    from vitdeploy.models import create_model

    arguments = {**TINY, **changes}
    rng = np.random.default_rng(seed)
    tensors = {
        name: (rng.standard_normal(tensor.shape) * 0.2 + (1.0 if "norm" in name and "weight" in name else 0.0)).astype(
            np.float32
        )
        for name, tensor in create_model("vit", **arguments).state_dict().items()
    }
    spec = ModelSpec(family="vit", name="tiny", arguments=arguments, classes=tuple("0123456789"))
    return write_checkpoint(path, tensors, Manifest(kind="checkpoint", model=spec, preprocess=DIGITS_PREPROCESS))
