"""Files of Google's two JAX code bases: what timm's own reader makes of them, by our ViT or by timm's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google_npz import google_arrays
from timm_vit import SIZE, vit
from torch import nn

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source
from vitdeploy.sources.loaded import LoadedModel

MEAN: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
TOKEN_BESIDE: dict[str, Any] = {"no_embed_class": True}
MAP: dict[str, Any] = {"class_token": False, "global_pool": "map"}
BESIDE = {"params/t": np.zeros(1, np.float32), "params/txt/Embed_0/embedding": np.zeros((9, 24), np.float32)}
STATE = {f"opt/0/mu/{name}": np.zeros(3, np.float32) for name in ("cls", "embedding/kernel", "head/kernel")}


def written(
    path: Path, model: nn.Module, beside: Mapping[str, Any] | None = None, *, reads: bool = True, **how: Any
) -> Path:
    """Write a model; timm's reader must understand the file as we do, where it knows its place in it."""
    np.savez(path, **dict[str, Any]({**google_arrays(model.state_dict(), **how), **(beside or {})}))
    if reads:
        copy: Any = vit(seed=1, **getattr(model, "made_with", {}))
        copy.load_pretrained(str(path))
        assert_same_module(copy, model)
    return path


def made(**changes: Any) -> nn.Module:
    model: Any = vit(**changes)
    model.made_with = changes
    return model


def assert_same_module(one: nn.Module, other: Any) -> None:
    x = torch.randn(2, 3, *other.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), atol=1e-4, rtol=1e-4)


def load(path: Path, source: str = "vit", **arguments: Any) -> LoadedModel:
    return load_source(source, weights=path, arguments=arguments)


@pytest.mark.parametrize(
    ("changes", "how", "beside"),
    [
        ({}, {}, {}),
        ({}, {"root": "opt/target/"}, {"opt/state/step": np.array(3)}),
        ({}, {"root": "params/", "reads": False}, STATE),
        ({}, {}, STATE),
        ({"patch_size": 4}, {}, {}),
        ({"img_size": (32, 48)}, {}, {}),  # 24 patches and a token are as many as 5×5 patches
        ({**MEAN}, {}, {}),
        ({**MEAN}, {"big_vision": True, "root": "params/"}, {}),
        ({**MEAN}, {"big_vision": True, "stacked": True}, {}),
        ({**TOKEN_BESIDE}, {"big_vision": True, "root": "params/", "stacked": True}, STATE),
        ({**TOKEN_BESIDE, "img_size": (32, 24)}, {"big_vision": True}, {}),
    ],
)
def test_files_of_both_code_bases(
    tmp_path: Path, changes: dict[str, Any], how: dict[str, Any], beside: dict[str, Any]
) -> None:
    model = made(**changes)
    path = written(tmp_path / "w.npz", model, beside, **how)
    size: dict[str, Any] = {"image_size": list(changes["img_size"])} if "img_size" in changes else {}
    loaded = load(path, **size)
    assert_same_module(loaded.module, model)
    assert any(note.startswith("left out ") for note in loaded.notes) is bool(beside)
    timms = load(path, "timm:vit_tiny_patch16_224", **{**SIZE, **changes})
    assert_same_module(timms.module, model)


@pytest.mark.parametrize("how", [{"root": "params/"}, {"root": "params/img/"}, {"root": "img/", "stacked": True}])
def test_a_pooling_by_attention_is_sent_to_timm_which_takes_it(tmp_path: Path, how: dict[str, Any]) -> None:
    model = made(**MAP)
    beside = STATE if how["root"] == "params/" else BESIDE
    path = written(tmp_path / "w.npz", model, beside, big_vision=True, reads=how["root"] != "img/", **how)
    with pytest.raises(CheckpointError, match=r"\(attn_pool\.latent, .*'timm:NAME' with weights='FILE' takes such"):
        load(path)
    loaded = load(path, "timm:vit_tiny_patch16_224", **SIZE, **MAP)
    assert_same_module(loaded.module, model)
    assert f"left out {next(iter(beside))} and {len(beside) - 1} more: no part of the model" in loaded.notes


def test_an_image_tower_without_a_head_is_features(tmp_path: Path) -> None:
    """As SigLIP's files hold one beside its text tower."""
    model = made(**MAP, num_classes=0)
    path = written(tmp_path / "w.npz", model, BESIDE, big_vision=True, root="params/img/")
    assert_same_module(load(path, "timm:vit_tiny_patch16_224", **{**SIZE, "num_classes": 0}, **MAP).module, model)
    headless = google_arrays(vit(num_classes=0).state_dict())
    np.savez(tmp_path / "h.npz", **dict[str, Any](headless))
    with pytest.raises(CheckpointError, match="has no classification head: task='features'"):
        load(tmp_path / "h.npz")


def test_an_oblong_image_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "w.npz", made(img_size=(32, 48)))
    with pytest.raises(CheckpointError, match="do not tell which image size it is for"):
        load(path)


@pytest.mark.parametrize("depth", [1, 3])
def test_timm_fills_no_other_model_with_them(tmp_path: Path, depth: int) -> None:
    path = written(tmp_path / "w.npz", made())
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(path, "timm:vit_tiny_patch16_224", **{**SIZE, "depth": depth})


def test_what_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    arrays = google_arrays(vit(**MEAN).state_dict(), big_vision=True)
    computed = {name: value for name, value in arrays.items() if name != "pos_embedding"}
    flexible = {**arrays, "embedding/kernel": arrays["embedding/kernel"].reshape(-1, 24)}
    gap = {name: value for name, value in arrays.items() if not name.endswith("MlpBlock_0/Dense_0/bias")}
    for index, (held, message) in enumerate(
        ((computed, "no table of positions: .*sines"), (flexible, "NaFlex"), (gap, "Dense_0/bias' is missing"))
    ):
        np.savez(tmp_path / f"{index}.npz", **dict[str, Any](held))
        for source, rest in (("vit", {}), ("timm:vit_tiny_patch16_224", {**SIZE, **MEAN})):
            with pytest.raises(CheckpointError, match=message):
                load(tmp_path / f"{index}.npz", source, **rest)
