"""What no key tells and changes logits: asked for, said where published models have one value, never silent."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vitdeploy.checkpoints import LoadedWeights, LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError
from vitdeploy.models import create_model
from vitdeploy.sources.load import load_source

pytestmark = pytest.mark.slow

SIZES: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch": 8, "width": 24, "depth": 2, "num_classes": 5},
    "deit": {"image_size": 32, "patch": 8, "width": 24, "depth": 2, "num_classes": 5},
    "t2t": {"image_size": 32, "token_width": 16, "width": 24, "depth": 2, "num_classes": 5},
    "tnt": {"image_size": 32, "width": 24, "inner_width": 8, "depth": 2, "num_classes": 5},
    "pvt_v2": {"image_size": 96, "widths": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_classes": 5},
    "pvt": {"image_size": 64, "widths": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_classes": 5},
}


def written(path: Path, family: str, **arguments: Any) -> torch.nn.Module:
    """Write a member of a family that no catalogue has, with weights that are nowhere zero."""
    torch.manual_seed(0)
    module = create_model(family, **{**SIZES[family], **arguments}).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    torch.save(module.state_dict(), path)
    return module


def load(path: Path, family: str | None, **arguments: Any) -> LoadedWeights:
    return load_foreign(path, family, LoadRequest(arguments=arguments))


@torch.no_grad()
def apart(one: torch.nn.Module, other: torch.nn.Module, size: int) -> float:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return float((one(x) - other(x)).abs().max())


@pytest.mark.parametrize(
    ("family", "right", "wrong", "asked"),
    [
        ("vit", {"heads": 3}, {"heads": 2}, "how many heads there are"),
        ("deit", {"heads": 3}, {"heads": 4}, "how many heads there are"),
        ("t2t", {"heads": 3}, {"heads": 2}, "how many heads there are"),
        ("tnt", {"heads": 3, "inner_heads": 2}, {"heads": 3, "inner_heads": 4}, "how many heads the inner encoder has"),
        ("pvt", {"heads": [1, 2, 3, 4]}, {"heads": [2, 2, 3, 4]}, "how many heads there are"),
    ],
)
def test_heads_are_asked_for_and_decide_the_logits(
    tmp_path: Path, family: str, right: dict[str, Any], wrong: dict[str, Any], asked: str
) -> None:
    module = written(tmp_path / "own.pth", family, **right)
    with pytest.raises(CheckpointError, match=f"do not tell .*{asked}"):
        load(tmp_path / "own.pth", family)
    size = SIZES[family]["image_size"]
    assert apart(load(tmp_path / "own.pth", family, **right).module, module, size) < 1e-4
    assert apart(load(tmp_path / "own.pth", family, **wrong).module, module, size) > 1e-2


@pytest.mark.parametrize(
    ("family", "heads", "argument", "note"),
    [
        ("t2t", {"heads": 3}, {"qk_scale": 0.2}, "took qk_scale=None, as all published models have it"),
        (
            "tnt",
            {"heads": 3, "inner_heads": 2},
            {"inner_stride": 2, "patch": 8},
            "took inner_stride=4, as all published",
        ),
        (
            "pvt_v2",
            {"heads": [1, 2, 3, 4], "image_size": 96, "linear": True},
            {"pool": 3},
            "took pool=7, as all published models have it",
        ),
    ],
)
def test_what_published_models_share_is_taken_and_said(
    tmp_path: Path, family: str, heads: dict[str, Any], argument: dict[str, Any], note: str
) -> None:
    module = written(tmp_path / "own.pth", family, **heads, **argument)
    loaded = load(tmp_path / "own.pth", family, **heads)
    assert any(one.startswith(note) for one in loaded.notes)
    told = load(tmp_path / "own.pth", family, **heads, **argument)
    assert not any(one.startswith("took " + next(iter(argument))) for one in told.notes)
    assert apart(told.module, module, SIZES[family]["image_size"]) < 1e-4


def test_a_pvt_v2_without_linear_attention_has_no_pooled_grid(tmp_path: Path) -> None:
    written(tmp_path / "own.pth", "pvt_v2", heads=[1, 2, 3, 4])
    assert not any(
        "pool" in note for note in load(tmp_path / "own.pth", "pvt_v2", heads=[1, 2, 3, 4], image_size=96).notes
    )


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Weights of ``vit_base_patch32_224``, whose shapes one variant of ours and several of timm's have."""
    return create_model("vit_base_patch32_224").state_dict()


def test_a_variant_that_is_told_by_shapes_alone_says_what_they_do_not_tell(
    state: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "own.pth")
    wanted = "took it for vit_base_patch32_224, the only one of its shapes in the catalogue, whose heads=12 the keys do"
    assert any(note.startswith(wanted) for note in load(tmp_path / "own.pth", None).notes)


@pytest.mark.parametrize("key", ["args", "hyper_parameters"])
def test_an_architecture_that_only_timm_knows_is_not_taken_for_another(
    state: dict[str, Any], tmp_path: Path, key: str
) -> None:
    """Its shapes are those of a ViT of the catalogue, its activation or pooling is not."""
    stated: Any = {"model": "vit_base_patch32_clip_quickgelu_224"}
    beside = argparse.Namespace(**stated) if key == "args" else stated
    torch.save({"state_dict": state, key: beside}, tmp_path / "own.pth")
    message = "'timm:vit_base_patch32_clip_quickgelu_224' with weights='FILE' builds it, and a name"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "own.pth", None)
    assert load(tmp_path / "own.pth", "vit_base_patch32_224").spec.name == "vit_base_patch32_224"


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("test_convnext", "test_convnext", "its args.model is 'test_convnext': the source 'timm:test_convnext' with"),
        ("test_vit3", "test_vit3", "the source 'timm:test_vit3' with weights='FILE' takes such weights"),
        ("test_mambaout", "test_mambaout", "the source 'timm:test_mambaout' with weights='FILE' builds"),
        ("resnet_of_mine", "test_convnext", "adopts that$"),
    ],
)
def test_weights_of_no_family_are_sent_to_the_model_of_timm_that_the_file_says(
    tmp_path: Path, name: str, keys: str, said: str
) -> None:
    args = argparse.Namespace(model=name, gp=None, model_kwargs={})
    torch.save({"state_dict": timm.create_model(keys).state_dict(), "args": args}, tmp_path / "own.pth")
    for family in (None, "vit"):
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / "own.pth", family)


def test_a_family_that_is_not_the_file_s_is_said_to_be_another(tmp_path: Path) -> None:
    written(tmp_path / "own.pth", "t2t", heads=3)
    for family in ("vit", "vit_pytorch", "pvt"):
        with pytest.raises(CheckpointError, match=f"holds weights of family 't2t', not of '{family}'"):
            load(tmp_path / "own.pth", family)


@pytest.mark.parametrize("name", ["vit_small", "resnet_of_mine", "deit"])
def test_a_name_that_nobody_knows_says_nothing(state: dict[str, Any], tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": state, "args": argparse.Namespace(arch=name)}, tmp_path / "own.pth")
    assert load(tmp_path / "own.pth", None).spec.name == "vit_base_patch32_224"


TIMM: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def unseen(loaded: LoadedWeights) -> list[str]:
    return [note for note in loaded.notes if note.startswith("took the exact GELU")]


@pytest.mark.parametrize("activation", ["relu", "silu", "quick_gelu"])
def test_an_activation_that_no_key_shows_is_said_with_the_source_that_has_it(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    arguments = {**TIMM, "act_layer": activation}
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    loaded = load(tmp_path / "own.pth", "vit", heads=3)
    assert apart(loaded.module, model, 32) > 1e-3
    (note,) = unseen(loaded)
    assert "arguments={'act_layer': 'NAME'} builds one of timm's" in note
    source = load_source("timm:vit_tiny_patch16_224", weights=tmp_path / "own.pth", arguments=arguments)
    assert apart(source.module, model, 32) == 0


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1e-12])
def test_an_epsilon_that_no_key_shows_is_said_with_the_argument_that_changes_it(tmp_path: Path, eps: float) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", norm_layer=partial(torch.nn.LayerNorm, eps=eps), **TIMM).eval()
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(1e-2)  # activations so small that an epsilon counts
    torch.save(model.state_dict(), tmp_path / "own.pth")
    assert (
        "norms with an epsilon of 1e-06 (arguments={'eps': VALUE}"
        in unseen(load(tmp_path / "own.pth", "vit", heads=3))[0]
    )
    told = load(tmp_path / "own.pth", "vit", heads=3, eps=eps)
    assert apart(told.module, model, 32) < 1e-6
    assert "epsilon" not in unseen(told)[0]


def test_what_a_name_of_the_catalogue_or_a_configuration_states_is_no_assumption(
    state: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "own.pth")
    assert len(unseen(load(tmp_path / "own.pth", None))) == 1
    assert unseen(load(tmp_path / "own.pth", "vit_base_patch32_224")) == []
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch32_224", "pretrained_cfg": {}}')
    assert unseen(load(folder, None)) == []
