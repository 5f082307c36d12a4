"""A checkpoint whose manifest claims a larger model than its tensors hold is refused when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitdeploy.artifacts import Checkpoint, read_checkpoint, write_checkpoint
from vitdeploy.errors import ArtifactError
from vitdeploy.stages.inspect import inspect


def _claiming(checkpoint: Checkpoint, path: Path, **arguments: Any) -> Path:
    model = checkpoint.manifest.model
    model = model.model_copy(update={"arguments": {**model.arguments, **arguments}})
    write_checkpoint(path, checkpoint.tensors(), checkpoint.manifest.model_copy(update={"model": model}))
    return path


@pytest.mark.parametrize(
    ("arguments", "claim"),
    [
        ({"depth": 10**6}, "depth=1000000"),
        ({"width": 10**9}, "width=1000000000"),
        ({"num_classes": 2**40}, "num_classes=1099511627776"),
        ({"depths": [2, 2, 10**6]}, "depths=1000000"),
        ({"image_size": (10**8, 224)}, "image_size=100000000"),
    ],
)
def test_a_claim_beyond_the_tensors_is_refused(
    tiny_checkpoint: Checkpoint, tmp_path: Path, arguments: dict[str, Any], claim: str
) -> None:
    path = _claiming(tiny_checkpoint, tmp_path / "x.safetensors", **arguments)
    for look in (read_checkpoint, inspect):
        with pytest.raises(ArtifactError, match=f"states a model with {claim} and holds .* tensors"):
            look(path)


def test_what_may_be_true_is_read(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = _claiming(tiny_checkpoint, tmp_path / "x.safetensors", depth=24, image_size=1024, drop_path=0.5)
    assert read_checkpoint(path).manifest.model.arguments["depth"] == 24
