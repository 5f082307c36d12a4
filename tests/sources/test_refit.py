"""A trained model at another image size and with other classes: what is resized, how, and what stays."""

from __future__ import annotations

import functools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitdeploy.artifacts import Checkpoint, read_checkpoint, write_checkpoint
from vitdeploy.errors import CheckpointError, ModelError, UsageError
from vitdeploy.models import model_from_spec
from vitdeploy.records import Manifest, ModelSpec, Preprocess
from vitdeploy.sources.load import LoadedModel, load, load_source
from vitdeploy.sources.source import SourceOptions, open_source
from vitdeploy.training.small import small_member

NAMES = ("ant", "bee", "cat", "dog")


def written(path: Path, family: str, size: tuple[int, int], name: str = "", **arguments: Any) -> Checkpoint:
    """Write a checkpoint with random weights of a small member of a family."""
    external = family in ("timm", "torchvision")
    shape = {} if external else {**small_member(family, size), "image_size": list(size)}
    spec = ModelSpec(
        family=family, name=name or family, arguments={**shape, "num_classes": 4, **arguments}, classes=NAMES
    )
    torch.manual_seed(0)
    module = model_from_spec(spec)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    preprocess = Preprocess(size=size, resize_size=round(max(size) / 0.875), mean=(0.5,) * 3, std=(0.5,) * 3)
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    manifest = Manifest(kind="checkpoint", model=spec, preprocess=preprocess)
    return write_checkpoint(path / "own.safetensors", tensors, manifest)


def refitted(checkpoint: Checkpoint | Path | str, classes: int = 4, **arguments: Any) -> LoadedModel:
    return load_source(checkpoint, arguments={**arguments, "num_classes": classes}, reset_head=True, seed=7)


def grid_resized(
    table: torch.Tensor, tokens: int, before: tuple[int, int], after: tuple[int, int], **how: Any
) -> torch.Tensor:
    """Return positions resized by torch alone."""
    cells = table[:, tokens:].reshape(1, *before, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=after, **how).permute(0, 2, 3, 1).reshape(1, -1, table.shape[2])
    return torch.cat([table[:, :tokens], cells], dim=1)


ANTIALIASED = {"mode": "bicubic", "antialias": True}
CUBIC, LINEAR = {"mode": "bicubic"}, {"mode": "bilinear"}


@pytest.mark.parametrize(
    ("family", "before", "after", "tables"),
    [
        ("vit", (32, 32), (48, 48), {"pos_embed": (1, (8, 8), (12, 12), ANTIALIASED)}),
        ("vit", (32, 32), (16, 24), {"pos_embed": (1, (8, 8), (4, 6), ANTIALIASED)}),
        ("vit", (16, 32), (32, 32), {"pos_embed": (1, (8, 16), (16, 16), ANTIALIASED)}),
        ("deit", (32, 32), (48, 48), {"pos_embed": (2, (8, 8), (12, 12), ANTIALIASED)}),
        ("hybrid", (32, 32), (48, 48), {"pos_embed": (1, (8, 8), (12, 12), ANTIALIASED)}),
        ("t2t", (32, 32), (48, 48), {"pos_embed": (1, (8, 8), (12, 12), CUBIC)}),
        ("tnt", (32, 32), (48, 48), {"outer_pos": (1, (8, 8), (12, 12), CUBIC)}),
        ("vit_pytorch", (32, 32), (48, 48), {"pos_embed": (1, (8, 8), (12, 12), CUBIC)}),
        (
            "pvt",
            (32, 32),
            (48, 48),
            {"pos_embed1": (0, (16, 16), (24, 24), LINEAR), "pos_embed2": (1, (8, 8), (12, 12), LINEAR)},
        ),
        ("pvt_v2", (32, 32), (48, 48), {}),
        ("patchconvnet", (32, 32), (48, 48), {}),
        ("swin", (32, 32), (48, 48), {}),
        ("swin_v2", (32, 32), (48, 48), {}),
    ],
)
def test_every_family_goes_to_another_size_and_other_classes_in_one_step(
    tmp_path: Path, family: str, before: tuple[int, int], after: tuple[int, int], tables: dict[str, Any]
) -> None:
    checkpoint = written(tmp_path, family, before)
    loaded = refitted(checkpoint, classes=3, image_size=list(after))
    old = {name: torch.from_numpy(value) for name, value in checkpoint.tensors().items()}
    new = loaded.module.state_dict()
    heads = {name for name in new if name.startswith(("head.", "head_dist."))}
    for name in old.keys() - heads - tables.keys():
        assert torch.equal(new[name], old[name]), name
    for name, (tokens, grid, target, how) in tables.items():
        torch.testing.assert_close(new[name], grid_resized(old[name], tokens, grid, target, **how), msg=name)
        assert any(note.startswith(f"resized {name} from {grid[0]}×{grid[1]} to ") for note in loaded.notes)
    assert loaded.notes[-1] == f"the head is new, for 3 classes: {', '.join(n for n in new if n in heads)}"
    assert loaded.preprocess.size == after
    assert loaded.preprocess == checkpoint.manifest.preprocess.at_size(after)
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, *after)).shape == (1, 3)


def test_a_new_head_follows_the_seed_alone(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, "vit", (16, 16))
    state = torch.random.get_rng_state()
    heads = [refitted(checkpoint, classes=3).module.get_parameter("head.weight") for _ in range(2)]
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_token_per_class_is_drawn_anew_with_the_head(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, "patchconvnet", (16, 16), multi_token=True)
    loaded = refitted(checkpoint, classes=6)
    assert loaded.module.cls_token.shape[1] == 6
    assert loaded.notes == ("the head is new, for 6 classes: cls_token, head.weight, head.bias",)


def test_tables_of_swin_follow_the_window(tmp_path: Path) -> None:
    """By cubic interpolation with repeated edges, the rule of the original repository."""
    checkpoint = written(tmp_path, "swin", (32, 32))
    assert checkpoint.manifest.model.arguments["window"] == 4
    with pytest.raises(ModelError, match="windows of 4×4 do not fill a stage of 22×22 tokens"):
        refitted(checkpoint, image_size=44)
    loaded = refitted(checkpoint, image_size=24, window=6)
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    table = torch.from_numpy(checkpoint.tensors()[name])
    cells = table.T.reshape(1, -1, 7, 7)
    expected = F.interpolate(cells, size=(11, 11), mode="bicubic").reshape(table.shape[1], -1).T
    torch.testing.assert_close(loaded.module.state_dict()[name], expected, atol=1e-5, rtol=0)
    assert f"resized {name} to a window of 6" in loaded.notes


def test_swin_v2_keeps_the_biases_of_the_window_that_it_was_trained_with(tmp_path: Path) -> None:
    """Biases are a function of the offset in windows of training, so equal offsets have equal biases."""
    checkpoint = written(tmp_path, "swin_v2", (32, 32))
    loaded = refitted(checkpoint, image_size=64, window=8)
    assert loaded.spec.arguments["pretrained_windows"] == [4, 4]
    before = load_source(checkpoint).module.layers[0].blocks[0].attn
    after = loaded.module.layers[0].blocks[0].attn
    middle = after.offsets.reshape(15, 15, 2)[4:11, 4:11].reshape(-1, 2)
    torch.testing.assert_close(middle, before.offsets.reshape(-1, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 2}, CheckpointError, "is in one of the two"),
        ({"mlp_ratio": 2.0}, CheckpointError, r"is \[256, 64\] in the weights and \[128, 64\] with these arguments"),
        ({"patch": 8}, CheckpointError, r"with these arguments: leave out those that change the weights"),
        ({"image_size": 30}, ModelError, "image_size 30×30 does not divide by patch 4"),
        ({"image_size": "big"}, UsageError, "image_size is 'big', expected a positive number"),
        ({"channels": 1}, UsageError, "channels is 1, and the weights take images of 3"),
        ({"dept": 2}, ModelError, "family 'vit' has no argument 'dept'"),
    ],
)
def test_what_changes_other_weights_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refitted(written(tmp_path, "vit", (32, 32)), **arguments)


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", (64, 96)), ("test_efficientnet", (64, 64)), ("test_resnet", (96, 96))]
)
def test_a_checkpoint_of_a_timm_model_opens_and_goes_to_another_size(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    from timm.layers import resample_abs_pos_embed

    checkpoint = written(tmp_path, "timm", (160, 160), name=name)
    same = load_source(read_checkpoint(checkpoint.path))
    for key, value in same.module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), checkpoint.tensors()[key])
    loaded = refitted(checkpoint, classes=3, image_size=list(size))
    old, new = same.module.state_dict(), loaded.module.state_dict()
    assert (loaded.spec.family, loaded.spec.arguments["num_classes"]) == ("timm", 3)
    assert loaded.preprocess.size == size
    differing = {key for key in old if not torch.equal(old[key], new[key])}
    tables = {"pos_embed"} & old.keys()
    assert differing == tables | {key for key in old if old[key].shape[0:1] == (4,) and new[key].shape[0:1] == (3,)}
    for key in tables:
        grid = [side // same.module.patch_embed.patch_size[0] for side in size]
        expected = resample_abs_pos_embed(old[key], grid, num_prefix_tokens=same.module.num_prefix_tokens)
        torch.testing.assert_close(new[key], expected)
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, *size)).shape == (1, 3)


def test_a_checkpoint_of_a_torchvision_model_gets_another_head(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, "torchvision", (64, 64), name="squeezenet1_1")
    loaded = refitted(checkpoint, classes=3)
    assert loaded.notes == ("the head is new, for 3 classes: classifier.1.weight, classifier.1.bias",)


@pytest.fixture
def small_torchvision_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vit_b_32`` of torchvision with one block of width 16; its own constructor, name and preprocessing."""
    from torchvision.models import _api
    from torchvision.models.vision_transformer import VisionTransformer

    @functools.wraps(_api.BUILTIN_MODELS["vit_b_32"])
    def small(*, weights: None = None, image_size: int = 224, **options: Any) -> VisionTransformer:
        return VisionTransformer(image_size, 32, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, **options)

    monkeypatch.setitem(_api.BUILTIN_MODELS, "vit_b_32", small)


@pytest.mark.parametrize("size", [96, 256, [320, 320]])
def test_torchvision_weights_of_the_usual_size_are_taken_at_another(
    small_torchvision_vit: None, tmp_path: Path, size: int | list[int]
) -> None:
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    torch.manual_seed(1)
    module = get_model("vit_b_32", num_classes=7)
    nn.init.normal_(module.encoder.pos_embedding)
    state = module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    loaded = load_source("torchvision:vit_b_32", weights=tmp_path / "w.pth", arguments={"image_size": size})
    side = size if isinstance(size, int) else size[0]
    expected = interpolate_embeddings(side, 32, OrderedDict(state))["encoder.pos_embedding"]
    torch.testing.assert_close(loaded.module.encoder.pos_embedding.data, expected)
    assert loaded.preprocess.size == (side, side)
    assert any(f"to {side // 32}×{side // 32}" in note for note in loaded.notes)
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, side, side)).shape == (1, 7)
    again = model_from_spec(loaded.spec)
    assert again.encoder.pos_embedding.shape == expected.shape


def test_torchvision_models_take_an_image_size_without_weights_or_refuse_it(small_torchvision_vit: None) -> None:
    def drawn(name: str, size: Any) -> LoadedModel:
        return load_source(f"torchvision:{name}", random_weights=True, arguments={"image_size": size})

    assert drawn("vit_b_32", 64).module.encoder.pos_embedding.shape == (1, 5, 16)
    assert drawn("squeezenet1_1", [64, 96]).preprocess.size == (64, 96)
    assert drawn("maxvit_t", 448).preprocess.size == (448, 448)
    with pytest.raises(ModelError, match="'torchvision:vit_b_32' takes square images, and image_size is 64×96"):
        drawn("vit_b_32", [64, 96])


def test_timm_weights_of_the_usual_size_are_taken_at_another(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(1)
    module = timm.create_model("test_vit", num_classes=7)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    loaded = load_source("timm:test_vit", weights=tmp_path / "w.safetensors", arguments={"image_size": 224})
    expected = resample_abs_pos_embed(module.pos_embed, [14, 14], num_prefix_tokens=module.num_prefix_tokens)
    torch.testing.assert_close(loaded.module.pos_embed, expected)
    assert loaded.spec.arguments == {"img_size": 224, "num_classes": 7}
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_source("timm:test_vit", weights=tmp_path / "w.safetensors", arguments={"image_size": 224, "embed_dim": 96})


@pytest.mark.parametrize("size", [64, 96])
def test_timm_weights_of_another_size_are_trained_further_at_theirs_and_at_others(tmp_path: Path, size: int) -> None:
    """The size that is named need not be the one of timm's own weights, nor that of the file."""
    import timm
    from safetensors.torch import save_file
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(1)
    module = timm.create_model("test_vit", num_classes=7, img_size=64)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    options = SourceOptions(weights=tmp_path / "w.safetensors", head_for=3, arguments={"image_size": size})
    loaded = load(open_source("timm:test_vit", options))
    side = size // module.patch_embed.patch_size[0]
    expected = resample_abs_pos_embed(module.pos_embed, [side, side], num_prefix_tokens=module.num_prefix_tokens)
    torch.testing.assert_close(loaded.module.pos_embed, expected)
    torch.testing.assert_close(loaded.module.blocks[0].attn.qkv.weight, module.blocks[0].attn.qkv.weight)
    assert loaded.preprocess.size == (size, size)
    assert loaded.module(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_torchvision_weights_are_taken_with_their_own_number_of_classes(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.save(get_model("squeezenet1_1", weights=None, num_classes=5).state_dict(), tmp_path / "w.pth")
    loaded = load_source("torchvision:squeezenet1_1", weights=tmp_path / "w.pth")
    assert loaded.spec.arguments == {"num_classes": 5}
