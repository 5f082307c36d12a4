"""Files for models that timm and torchvision build: any wrapper, batch norms, heads as people change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import get_model

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import LoadedModel, load_source

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]
WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "Lightning": lambda state: {
        "state_dict": {**{f"model.{name}": value for name, value in state.items()}, "criterion.weight": torch.ones(5)}
    },
    "timm's script": lambda state: {
        "state_dict": {name: torch.zeros_like(value) for name, value in state.items()},
        "state_dict_ema": {f"module.{name}": value for name, value in state.items()},
    },
}


def with_statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.2 + (0.5 if name.endswith("var") else 0))
    return module.eval()


def assert_loads(source: str, module: nn.Module, path: Path, **arguments: Any) -> tuple[str, ...]:
    loaded = load_source(source, weights=path, arguments=arguments)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))
    return loaded.notes


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize(
    ("source", "build"),
    [
        ("timm:resnet10t", lambda: timm.create_model("resnet10t", num_classes=5)),
        ("timm:efficientvit_b0", lambda: timm.create_model("efficientvit_b0", num_classes=5)),
        ("torchvision:resnet18", lambda: get_model("resnet18", num_classes=5)),
    ],
)
def test_models_with_batch_norms_load_from_any_wrapper(
    tmp_path: Path, source: str, build: Callable[[], nn.Module], wrapping: str
) -> None:
    module = with_statistics(build())
    torch.save(WRAPPED[wrapping](module.state_dict()), tmp_path / "w.pth")
    notes = assert_loads(source, module, tmp_path / "w.pth")
    assert ("took the weights under 'state_dict_ema.module'" in notes) == (wrapping == "timm's script")


@pytest.mark.parametrize(
    ("source", "build", "attribute", "head"),
    [
        ("timm:resnet10t", lambda: timm.create_model("resnet10t"), "fc", lambda width: nn.Linear(width, 3)),
        (
            "timm:resnet10t",
            lambda: timm.create_model("resnet10t"),
            "fc",
            lambda width: nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 3)),
        ),
        (
            "torchvision:resnet18",
            lambda: get_model("resnet18"),
            "fc",
            lambda width: nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 3)),
        ),
    ],
)
def test_heads_as_people_change_them(
    tmp_path: Path, source: str, build: Callable[[], nn.Module], attribute: str, head: Callable[[int], nn.Module]
) -> None:
    module = build()
    setattr(module, attribute, head(getattr(module, attribute).in_features))
    module = with_statistics(module)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    assert_loads(source, module, tmp_path / "w.pth")


def test_names_of_the_papers_repository_are_taken_as_timm_takes_them(tmp_path: Path) -> None:
    """Microsoft's Swin has its merging of patches a stage earlier and its head without a name of its own."""
    size = {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 12}
    module = with_statistics(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **size))
    theirs = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value
        for name, value in module.state_dict().items()
    }
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    loaded = load_source(
        "timm:swin_tiny_patch4_window7_224", weights=tmp_path / "swin.pth", arguments={**size, "num_classes": 5}
    )
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), module(x))


@pytest.mark.parametrize(
    ("name", "built", "changes", "offer"),
    [
        (
            "vit_tiny_patch16_224",
            {"depth": 1},
            {"patch_size": 8, "img_size": 112},
            "{'img_size': 112, 'patch_size': 8}",
        ),
        ("vit_tiny_patch16_224", {"depth": 1}, {"img_size": 64}, "{'img_size': 64}"),
        ("vit_tiny_patch16_224", {"depth": 1}, {"in_chans": 1}, "{'in_chans': 1}"),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, {"img_size": 96}, "{'img_size': 96}"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, {"img_size": 64}, "{'img_size': 64}"),
        ("vit_tiny_patch16_224", {"depth": 1}, {"depth": 2}, None),
    ],
)
def test_another_shape_is_refused_with_the_arguments_that_have_it(
    tmp_path: Path, name: str, built: dict[str, Any], changes: dict[str, Any], offer: str | None
) -> None:
    """Also where timm would resize it."""
    module = timm.create_model(name, num_classes=5, **{**built, **changes})
    torch.save(module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load_source(f"timm:{name}", weights=tmp_path / "w.pth", arguments=built)
    assert str(caught.value).partition("; with arguments=")[2] == ("" if offer is None else f"{offer} it fits")
    if offer is not None:
        assert_same(load_source(f"timm:{name}", weights=tmp_path / "w.pth", arguments={**built, **changes}), module)


def assert_same(loaded: LoadedModel, module: nn.Module) -> None:
    assert all(torch.equal(value, loaded.module.state_dict()[key]) for key, value in module.state_dict().items())
