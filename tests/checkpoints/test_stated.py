"""What a file of timm states and no key shows decides the logits: pooling, heads, activation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source
from vitdeploy.sources.loaded import LoadedModel

pytestmark = pytest.mark.slow

NAME = "vit_tiny_patch16_224"
BUILT: dict[str, dict[str, Any]] = {
    "another number of heads": {"num_heads": 6},
    "a mean without a norm of its own": {"global_pool": "avg", "fc_norm": False},
    "a mean": {"global_pool": "avg"},
    "the class token": {"global_pool": "token"},
    "a maximum": {"global_pool": "max"},
    "another activation": {"act_layer": "relu"},
}
ONLY_TIMM = ("a maximum", "another activation")


def module_of(name: str = NAME, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, num_classes=5, **changes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.1)
    return module.eval()


def assert_same(loaded: LoadedModel, module: nn.Module, *size: int) -> None:
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), module(x), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("case", BUILT)
def test_a_folder_of_timm_is_built_as_its_arguments_say(tmp_path: Path, case: str) -> None:
    module = module_of(**BUILT[case])
    timm.models.save_for_hf(module, tmp_path / "folder", model_args=BUILT[case])
    loaded = load_source(tmp_path / "folder")
    assert_same(loaded, module, 224, 224)
    assert loaded.spec.family == ("timm" if case in ONLY_TIMM else "vit")


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_a_folder_without_arguments_still_says_its_pooling(tmp_path: Path, pool: str) -> None:
    module = module_of(global_pool=pool)
    timm.models.save_for_hf(module, tmp_path / "folder")
    assert_same(load_source(tmp_path / "folder"), module, 224, 224)


def test_the_image_size_of_a_swin_is_that_of_its_arguments(tmp_path: Path) -> None:
    size: dict[str, Any] = {"img_size": 448}
    module = module_of("swin_tiny_patch4_window7_224", **size)
    timm.models.save_for_hf(module, tmp_path / "folder", model_args=size)
    loaded = load_source(tmp_path / "folder")
    assert (loaded.spec.family, loaded.preprocess.size) == ("swin", (448, 448))


def test_images_are_of_the_size_of_the_model_and_not_of_a_configuration_that_was_left_behind(tmp_path: Path) -> None:
    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    module: Any = module_of(**small)
    module.pretrained_cfg = {**module.pretrained_cfg, "input_size": (3, 224, 224)}
    timm.models.save_for_hf(module, tmp_path / "folder", model_args=small)
    assert load_source(tmp_path / "folder").preprocess.size == (32, 32)


@pytest.mark.parametrize("case", BUILT)
@pytest.mark.parametrize("source", [None, NAME])
def test_arguments_of_timms_script_decide(tmp_path: Path, case: str, source: str | None) -> None:
    module = module_of(**BUILT[case])
    kwargs = {key: value for key, value in BUILT[case].items() if key != "global_pool"}
    args = argparse.Namespace(model=NAME, gp=BUILT[case].get("global_pool"), model_kwargs=kwargs)
    torch.save({"state_dict": module.state_dict(), "args": args, "arch": NAME}, tmp_path / "last.pth.tar")
    weights = tmp_path / "last.pth.tar"

    def load() -> LoadedModel:
        return load_source(weights) if source is None else load_source(source, weights=weights)

    if case not in ONLY_TIMM:
        assert_same(load(), module, 224, 224)
        return
    with pytest.raises(CheckpointError, match=f"'timm:{NAME}' with weights='FILE', arguments=.* builds it"):
        load()
    assert_same(load_source(f"timm:{NAME}", weights=weights, arguments=BUILT[case]), module, 224, 224)


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("stated", "changed"),
    [
        ({"mean": [0.1, 0.2, 0.3], "std": [0.4]}, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.4, 0.4)}),
        ({"interpolation": "bilinear"}, {"interpolation": "bilinear"}),
        ({"crop_pct": 0.8}, {"resize_size": 40}),
        ({}, {}),
    ],
)
def test_arguments_of_timms_script_set_the_preprocessing(
    tmp_path: Path, stated: dict[str, Any], changed: dict[str, Any]
) -> None:
    state = timm.models.VisionTransformer(**SMALL, num_classes=5).state_dict()

    def load(args: argparse.Namespace) -> LoadedModel:
        torch.save({"state_dict": state, "args": args}, tmp_path / "last.pth.tar")
        return load_source("vit", weights=tmp_path / "last.pth.tar", arguments={"heads": 3, "pool": "cls"})

    script = {"mean": None, "std": None, "crop_pct": None, "interpolation": ""}  # its defaults: the model's own
    plain, loaded = load(argparse.Namespace()).preprocess, load(argparse.Namespace(**{**script, **stated}))
    changes = {**changed, "source": f"{plain.source}, changed by its args"} if changed else {}
    assert loaded.preprocess == plain.model_copy(update=changes)
    assert (f"its args set the preprocessing: {', '.join(sorted(stated))}" in loaded.notes) is bool(changed)


@pytest.mark.parametrize(
    ("changes", "note", "arguments"),
    [
        ({"global_pool": "avg", "fc_norm": False}, "took pool=cls, as all published", {"pool": "mean"}),
        ({"global_pool": "avg"}, "took the mean before fc_norm", {}),
        ({}, "took pool=cls, as all published", {}),
    ],
)
def test_a_pooling_that_nothing_tells_is_noted_and_can_be_said(
    tmp_path: Path, changes: dict[str, Any], note: str, arguments: dict[str, Any]
) -> None:
    module = module_of(**SMALL, **changes)
    torch.save(module.state_dict(), tmp_path / "own.pth")
    request = LoadRequest(arguments={"heads": 3})
    assert any(one.startswith(note) for one in load_foreign(tmp_path / "own.pth", "vit", request).notes)
    loaded = load_source("vit", weights=tmp_path / "own.pth", arguments={"heads": 3, **arguments})
    assert_same(loaded, module, 32, 32)


def test_positions_of_an_oblong_image_are_not_those_of_a_square_without_its_token(tmp_path: Path) -> None:
    """4×6 patches and a class token are as many as 5×5 patches."""
    module = module_of(**{**SMALL, "img_size": (32, 48)})
    torch.save(module.state_dict(), tmp_path / "own.pth")
    arguments = {"heads": 3, "image_size": [32, 48]}
    assert_same(load_source("vit", weights=tmp_path / "own.pth", arguments=arguments), module, 32, 48)
