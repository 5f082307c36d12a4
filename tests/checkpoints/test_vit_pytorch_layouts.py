"""Weights of vit-pytorch of every age give the logits of the version that wrote them, or are refused by its name.

The golden files were written by those versions themselves: weights, two images, logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vit_pytorch import ViT

from vitdeploy.checkpoints import LoadedWeights, LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden" / "vit_pytorch"
CLOSE = 1e-5

# What a user must say of each file, as the keys do not; "single" has one head as wide as the model.
TWO_HEADS = {"heads": 2}
CLS = {"pool": "cls"}
SAID: dict[str, dict[str, Any]] = {
    "0.3.0-cls": {**CLS, "heads": 2, "scale_by_width": True},
    "0.6.6-mean": {"heads": 2, "scale_by_width": True, "pool": "mean"},
    "0.6.7-cls": {**CLS, "head_width": 8, "scale_by_width": False},
    "0.7.0-mean": {"heads": 2, "pool": "mean"},
    "0.7.0-single": {**CLS, "heads": 1},
    "0.7.4-single": CLS,
    "0.9.3-cls": {**CLS, **TWO_HEADS},
    "0.10.1-mean": {"heads": 2, "pool": "mean"},
    "0.40.2-cls": {**CLS, **TWO_HEADS},
    "1.0.0-mean": {"heads": 2, "pool": "mean"},
    "1.2.9-cls": {**CLS, **TWO_HEADS},
    "1.4.0-cls": {**CLS, **TWO_HEADS},
    "1.15.7-mean": {"heads": 2, "pool": "mean"},
    "1.16.0-cls": {**CLS, **TWO_HEADS},
    "1.16.0-mean": TWO_HEADS,
    "1.16.1-mean": TWO_HEADS,
}


def written(tmp_path: Path, name: str) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Write the weights of a golden file as a user has them; return them with the images and logits."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    x, logits = tensors.pop("x"), tensors.pop("logits")
    path = tmp_path / f"{name}.pt"
    torch.save({key.removeprefix("weights."): value for key, value in tensors.items()}, path)
    return path, x, logits


def load(path: Path, **arguments: Any) -> LoadedWeights:
    return load_foreign(path, None, LoadRequest(arguments=arguments))


def difference(loaded: LoadedWeights, x: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((loaded.module(x) - expected).abs().max() / (expected.max() - expected.min()))


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_weights_of_a_version_give_its_logits(tmp_path: Path, name: str) -> None:
    path, x, logits = written(tmp_path, name)
    loaded = load(path, **SAID[name])
    assert difference(loaded, x, logits) <= CLOSE
    assert loaded.spec.arguments["image_size"] == 10
    assert loaded.spec.arguments["patch"] == 2
    assert loaded.dialect == "vit-pytorch"


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("0.6.7-cls", "0.3.0–0.6.8"),
        ("0.9.3-cls", "0.7.0–0.9.x"),
        ("0.40.2-cls", "0.10.0–0.40.x"),
        ("1.2.9-cls", "1.0.0–1.3.x"),
        ("1.15.7-mean", "1.4.0–1.16.0"),
        ("1.16.0-mean", "1.16.0"),
        ("1.16.1-mean", "1.16.1 and later"),
    ],
)
def test_the_notes_name_the_versions_that_write_such_keys(tmp_path: Path, name: str, versions: str) -> None:
    loaded = load(written(tmp_path, name)[0], **SAID[name])
    assert f"its layout is that of vit-pytorch {versions}" in loaded.notes


@pytest.mark.parametrize(
    ("name", "other"), [("0.6.6-mean", {"scale_by_width": False}), ("1.0.0-mean", {"pool": "cls"})]
)
def test_what_the_user_says_decides_what_the_keys_cannot(tmp_path: Path, name: str, other: dict[str, Any]) -> None:
    path, x, logits = written(tmp_path, name)
    assert difference(load(path, **{**SAID[name], **other}), x, logits) > 100 * CLOSE


def test_the_scale_of_old_versions_must_be_said_and_both_choices_are_named(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, "0.6.6-mean")
    message = r"0\.3\.0–0\.6\.6 scale attention by dim.*'scale_by_width': True.*'scale_by_width': False} for the latter"
    with pytest.raises(CheckpointError, match=message):
        load(path, heads=2)


def test_the_scale_need_not_be_said_where_both_are_the_same(tmp_path: Path) -> None:
    path, x, logits = written(tmp_path, "0.7.0-single")
    state = torch.load(path, weights_only=True)
    state["patch_to_embedding.weight"] = state.pop("to_patch_embedding.1.weight")
    state["patch_to_embedding.bias"] = state.pop("to_patch_embedding.1.bias")
    torch.save(state, path)
    assert difference(load(path, heads=1, pool="cls"), x, logits) <= CLOSE


def test_heads_that_the_keys_do_not_tell_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"how many heads share the 16 rows of q: .*arguments=\{'heads': 8\}"):
        load(written(tmp_path, "1.4.0-cls")[0])


def test_heads_as_wide_as_the_model_say_nothing_of_the_oldest_layout(tmp_path: Path) -> None:
    """0.3.0 has heads of width / heads, so that 64 is no default there."""
    path, _, _ = written(tmp_path, "0.3.0-cls")
    state = {
        name: value.repeat_interleave(16, 0)[:192] if name.endswith("to_qkv.weight") else value
        for name, value in torch.load(path, weights_only=True).items()
    }
    state["mlp_head.0.weight"] = torch.ones(64)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="how many heads share the 64 rows of q"):
        load(path, scale_by_width=True, pool="cls")


@pytest.mark.parametrize("given", [{"heads": 3}, {"heads": 2, "head_width": 4}, {"head_width": 5}])
def test_heads_that_do_not_fit_are_refused(tmp_path: Path, given: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="do not make the 16 rows of q that the weights have"):
        load(written(tmp_path, "1.4.0-cls")[0], **given)


def test_a_missing_projection_tells_of_one_head(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, "0.7.4-single")
    with pytest.raises(CheckpointError, match="1 heads of 12 do not make"):
        load(path, heads=2)


def current(tmp_path: Path, **changes: Any) -> tuple[Path, ViT]:
    torch.manual_seed(0)
    model = ViT(
        **{
            "image_size": 32, "patch_size": 8, "num_classes": 7, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 40,
            **changes,
        }
    ).eval()  # fmt: skip
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", model


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("heads", "dim_head"), [(2, 64), (4, 32), (8, 16)])
def test_heads_are_never_assumed_to_be_of_the_default_width(
    tmp_path: Path, pool: str, heads: int, dim_head: int
) -> None:
    """The shapes of all three are the same, their logits are not."""
    path, model = current(tmp_path, pool=pool, heads=heads, dim_head=dim_head)
    message = (
        r"how many heads share the 128 rows of q: .*arguments=\{'heads': 2\}, which are 2 of vit-pytorch's default"
    )
    with pytest.raises(CheckpointError, match=message):
        load(path)
    loaded = load(path, heads=heads)
    x = torch.randn(2, 3, 32, 32)
    assert difference(loaded, x, model(x).detach()) <= CLOSE
    assert (loaded.spec.family, loaded.spec.arguments["pool"]) == ("vit_pytorch", pool)


@pytest.mark.parametrize("name", ["1.4.0-cls", "1.15.7-mean", "0.9.3-cls"])
def test_a_pool_that_the_keys_do_not_tell_is_asked_for(tmp_path: Path, name: str) -> None:
    path, _, _ = written(tmp_path, name)
    with pytest.raises(CheckpointError, match=r"keys do not tell which: .*\{'pool': 'cls'\}.*\{'pool': 'mean'\}"):
        load(path, heads=2)


def test_channels_other_than_three_must_be_said(tmp_path: Path) -> None:
    """Four of a smaller patch have as many values as one of a larger."""
    path, model = current(tmp_path, channels=1)
    with pytest.raises(CheckpointError, match=r"3 channels and patches of 4×4 do not make the 64 values.*'channels'"):
        load(path, heads=2)
    x = torch.randn(2, 1, 32, 32)
    for said in ({"channels": 1}, {"patch": 8}):
        loaded = load(path, heads=2, **said)
        assert difference(loaded, x, model(x).detach()) <= CLOSE
        record = loaded.preprocess
        assert (record.channels, record.mean, record.std) == (1, (0.5,), (0.5,))


def test_one_message_asks_for_all_that_the_keys_do_not_tell(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path, "0.6.6-mean")
    with pytest.raises(CheckpointError, match=r"'heads': 8\}; .*'pool': 'cls'\}.*; .*'scale_by_width': True"):
        load(path)


def test_images_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    path, _ = current(tmp_path, channels=4)
    with pytest.raises(CheckpointError, match="images of 4 channels, only 1 and 3 can be read"):
        load(path, heads=2, channels=4)


def test_sides_of_an_image_that_is_no_square_must_be_said(tmp_path: Path) -> None:
    path, model = current(tmp_path, image_size=(16, 24))
    with pytest.raises(CheckpointError, match=r"6 positions are no square.*arguments=\{'image_size': \[224, 160\]\}"):
        load(path, heads=2)
    x = torch.randn(2, 3, 16, 24)
    loaded = load_foreign(path, None, LoadRequest(image_size=(16, 24), arguments=TWO_HEADS))
    assert difference(loaded, x, model(x).detach()) <= CLOSE


def test_positions_are_resized_for_another_image_size(tmp_path: Path) -> None:
    path, _ = current(tmp_path)
    loaded = load_foreign(path, None, LoadRequest(image_size=48, arguments=TWO_HEADS))
    assert loaded.module(torch.randn(1, 3, 48, 48)).shape == (1, 7)
    assert any("resized pos_embed from 4×4 to 6×6" in note for note in loaded.notes)


def test_weights_without_a_head_need_a_new_one(tmp_path: Path) -> None:
    path, _ = current(tmp_path, num_classes=0)
    with pytest.raises(CheckpointError, match="has no classification head"):
        load(path, heads=2)
    loaded = load_foreign(path, None, LoadRequest(num_classes=3, reset_head=True, arguments=TWO_HEADS))
    assert loaded.module(torch.randn(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("extra", ["mlp_head.4.weight", "mlp_head.3.weight", "transformer.net.0.fn.norm.weight"])
def test_versions_before_0_3_are_refused_by_name(tmp_path: Path, extra: str) -> None:
    path, _, _ = written(tmp_path, "0.3.0-cls")
    torch.save({**torch.load(path, weights_only=True), extra: torch.ones(5, 12)}, path)
    with pytest.raises(CheckpointError, match=r"vit-pytorch 0\.0\.1–0\.2\.7, whose head has two layers"):
        load(path)


def test_a_tensor_of_another_model_of_the_package_is_not_dropped(tmp_path: Path) -> None:
    path, _ = current(tmp_path)
    state = load_file(path)
    save_file({**state, "transformer.layers.0.0.reattn_weights": torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"1 left over \(transformer\.layers\.0\.0\.reattn_weights\)"):
        load(path, heads=2)


def test_preprocessing_that_vit_pytorch_does_not_fix_is_named_a_default(tmp_path: Path) -> None:
    loaded = load(current(tmp_path)[0], heads=2)
    assert loaded.preprocess.size == (32, 32)
    assert any("does not state its preprocessing: took a default" in note for note in loaded.notes)
    json.dumps(loaded.spec.arguments)  # every value goes into a manifest
