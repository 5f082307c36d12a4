"""A small vision transformer of timm with weights that are nowhere zero, and what loading it must give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitdeploy.checkpoints import LoadedWeights, LoadRequest, load_foreign

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
HEADS = LoadRequest(arguments={"heads": 3})


def vit(seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.models.vision_transformer.VisionTransformer(**{**SIZE, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def assert_loads(path: Path, reference: nn.Module, request: LoadRequest = HEADS) -> LoadedWeights:
    loaded = load_foreign(path, "vit", request)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), reference(x), atol=1e-4, rtol=1e-4)
    return loaded


def with_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}
