"""What would load and give other logits than the library that wrote it is refused by the name of its key."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source
from vitdeploy.sources.loaded import LoadedModel

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}


def built(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return drawn(timm.create_model(name, num_classes=5, **arguments))


def drawn(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def saved(path: Path, name: str, **arguments: Any) -> tuple[Path, nn.Module]:
    """Write what timm's train script writes."""
    module = built(name, **arguments)
    kwargs = {key: value for key, value in arguments.items() if key != "global_pool"}
    args = argparse.Namespace(model=name, gp=arguments.get("global_pool"), model_kwargs=kwargs)
    torch.save({"state_dict": module.state_dict(), "args": args, "arch": name}, path / "last.pth.tar")
    return path / "last.pth.tar", module


def assert_same(loaded: LoadedModel, module: nn.Module, height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = module(x)
        theirs = getattr(theirs, "logits", theirs)
        torch.testing.assert_close(loaded.module(x), theirs, atol=1e-4 * float(theirs.std()), rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_a_norm_before_the_head_beside_an_unstated_pooling(tmp_path: Path, name: str) -> None:
    weights, module = saved(tmp_path, name, **VIT, fc_norm=True)
    with pytest.raises(CheckpointError, match=f"'fc_norm': True.*'timm:{name}' with weights="):
        load_source("vit", weights=weights, arguments={"heads": 3})
    assert_same(load_source(f"timm:{name}", weights=weights, arguments={**VIT, "fc_norm": True}), module, 32, 32)
    weights, module = saved(tmp_path, name, **VIT, fc_norm=True, global_pool="avg")
    assert_same(load_source("vit", weights=weights, arguments={"heads": 3}), module, 32, 32)


@pytest.mark.parametrize("before", [(8, 4), (6, 6), (0, 0)])
def test_the_windows_before_fine_tuning_are_those_that_the_file_states(tmp_path: Path, before: tuple[int, int]) -> None:
    weights, module = saved(tmp_path, "swinv2_tiny_window8_256", **SWIN, pretrained_window_sizes=before)
    loaded = load_source("swin_v2", weights=weights, arguments={"window": 4})
    assert loaded.spec.arguments["pretrained_windows"] == list(before)
    assert_same(loaded, module, 64, 64)
    if any(before):
        with pytest.raises(CheckpointError, match=r"pretrained_windows=.* pretrained_windows is \[0, 0\]"):
            load_source("swin_v2", weights=weights, arguments={"window": 4, "pretrained_windows": [0, 0]})


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_oblong_swins_of_timm(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    weights, _ = saved(tmp_path, name, **{**SWIN, "img_size": size})
    second = name.startswith("swinv2")
    arguments = {"window": 4, "pretrained_windows": [0, 0]} if second else {}
    with pytest.raises(CheckpointError, match=r"(8×4|4×8) .*'timm:NAME'"):
        load_source("swin_v2" if second else "swin", weights=weights, arguments=arguments)


def test_an_oblong_swin_whose_stages_are_all_larger_than_a_window_is_that_of_timm(tmp_path: Path) -> None:
    weights, module = saved(tmp_path, "swin_tiny_patch4_window7_224", **{**SWIN, "img_size": (64, 128)})
    loaded = load_source("swin", weights=weights, arguments={"image_size": [64, 128]})
    assert_same(loaded, module, 64, 128)


HF: dict[str, Any] = {
    "image_size": 64, "embed_dim": 12, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, "num_labels": 5
}  # fmt: skip


def folder(path: Path, kind: str, **config: Any) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    stated = getattr(transformers, f"{kind}Config")(**HF | config)
    module = drawn(getattr(transformers, f"{kind}ForImageClassification")(stated))
    module.save_pretrained(path / kind)
    return path / kind, module


@pytest.mark.parametrize("kind", ["Swin", "Swinv2"])
def test_the_epsilon_of_a_swin_of_transformers(tmp_path: Path, kind: str) -> None:
    path, _ = folder(tmp_path, kind, layer_norm_eps=0.1)
    with pytest.raises(CheckpointError, match=r"layer_norm_eps is 0\.1 .*adopted\.onnx"):
        load_source(path)
    path, module = folder(tmp_path, kind)
    assert_same(load_source(path), module, 64, 64)


@pytest.mark.parametrize(
    ("kind", "size", "same"),
    [("Swin", [64, 32], True), ("Swin", [32, 64], True), ("Swinv2", [32, 64], True), ("Swinv2", [64, 32], False)],
)
def test_oblong_swins_of_transformers(tmp_path: Path, kind: str, size: list[int], same: bool) -> None:
    path, module = folder(tmp_path, kind, image_size=size)
    if same:
        assert_same(load_source(path), module, *size)
        return
    with pytest.raises(CheckpointError, match=r"image_size is \[64, 32\] .*adopted.onnx"):
        load_source(path)


@pytest.mark.parametrize("kind", ["Swin", "Swinv2"])
def test_code_beside_a_configuration_is_not_run(tmp_path: Path, kind: str) -> None:
    path, _ = folder(tmp_path, kind)
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "own.OwnForImageClassification"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"auto_map is .*own\.Own.*adopted\.onnx"):
        load_source(path)
