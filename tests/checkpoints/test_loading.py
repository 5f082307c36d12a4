"""Checkpoints of every dialect load unmodified and give their reference's logits; misfits are refused by name."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from google_npz import google_arrays
from redrawing import redraw
from safetensors.torch import save_file
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign, read_weights
from vitdeploy.checkpoints.conventions import by_convention
from vitdeploy.errors import ArtifactError, CheckpointError
from vitdeploy.models import create_model

IMAGENET = "mean 0.485/0.456/0.406, std 0.229/0.224/0.225"

CLOSE = 1e-5
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
OURS = {"image_size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 3, "num_classes": 7}
HEADS = LoadRequest(arguments={"heads": 3})


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(x)
    return getattr(out, "logits", out)


def assert_same(loaded: nn.Module, reference: nn.Module, size: int = 32) -> None:
    x = torch.randn(2, 3, size, size)
    expected = logits(reference, x)
    difference = (logits(loaded, x) - expected).abs().max() / (expected.max() - expected.min())
    assert difference <= CLOSE


def timm_vit(**changes: Any) -> nn.Module:
    return redraw(timm.models.vision_transformer.VisionTransformer(**{**SIZE, **changes})).eval()


# Each makes a reference model and writes it as its own code base would; the name says what load_foreign is told.


def as_timm_safetensors(folder: Path):
    model = timm_vit()
    save_file(model.state_dict(), folder / "model.safetensors")
    return model, folder / "model.safetensors", "vit", HEADS


def as_timm_mean_pool(folder: Path):
    model = timm_vit(global_pool="avg", class_token=False)
    torch.save(model.state_dict(), folder / "model.pth")
    return model, folder / "model.pth", "vit", HEADS


def as_timm_mean_pool_beside_a_class_token(folder: Path):
    model = timm_vit(global_pool="avg")
    torch.save(model.state_dict(), folder / "mae.pth")
    return model, folder / "mae.pth", "vit", HEADS


def as_deit3_training_checkpoint(folder: Path):
    model = timm_vit(init_values=0.1, no_embed_class=True)
    state = {
        name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): value
        for name, value in model.state_dict().items()
    }
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, folder / "deit3.pth")
    return model, folder / "deit3.pth", "vit", HEADS


def as_timm_parallel(folder: Path):
    block = timm.models.vision_transformer.ParallelThingsBlock
    model = timm_vit(block_fn=block, init_values=0.1)
    torch.save(model.state_dict(), folder / "model.pth")
    return model, folder / "model.pth", "vit", HEADS


def as_distilled_deit(folder: Path):
    model = redraw(timm.models.deit.VisionTransformerDistilled(**SIZE)).eval()
    torch.save({"model": model.state_dict()}, folder / "deit.pth")
    return model, folder / "deit.pth", "deit", HEADS


def as_torchvision_vit(folder: Path):
    model = redraw(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=7
        )
    ).eval()
    torch.save(model.state_dict(), folder / "vit_b_16.pth")
    return model, folder / "vit_b_16.pth", "vit", HEADS


def hf_config(kind, **changes: Any):
    return kind(
        **{
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 96,
            "num_labels": 7,
            **changes,
        }
    )


def as_hugging_face_vit(folder: Path):
    model = redraw(transformers.ViTForImageClassification(hf_config(transformers.ViTConfig))).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


def as_hugging_face_deit(folder: Path):
    model = redraw(transformers.DeiTForImageClassification(hf_config(transformers.DeiTConfig))).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


def as_hugging_face_distilled_deit(folder: Path):
    model = redraw(transformers.DeiTForImageClassificationWithTeacher(hf_config(transformers.DeiTConfig))).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


def as_google_npz(folder: Path):
    model = timm_vit()
    np.savez(folder / "Ti_16.npz", **dict[str, Any](google_arrays(model.state_dict())))
    return model, folder / "Ti_16.npz", "vit", LoadRequest()


def as_timm_tnt(folder: Path):
    model = redraw(
        timm.models.tnt.TNT(
            img_size=32, embed_dim=24, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=3, num_classes=7
        )
    ).eval()
    torch.save({"state_dict": model.state_dict()}, folder / "tnt.pth")
    sizes = {"image_size": 32, "width": 24, "depth": 2, "heads": 3, "inner_width": 8, "inner_heads": 2}
    return model, folder / "tnt.pth", "tnt", LoadRequest(arguments=sizes)


PVT2 = {"widths": [8, 16], "depths": [1, 2], "heads": [1, 2], "mlp_ratios": [2, 2], "sr_ratios": [2, 1]}


def as_timm_pvt_v2(folder: Path):
    model = redraw(
        timm.models.pvt_v2.PyramidVisionTransformerV2(
            depths=(1, 1, 2, 1),
            embed_dims=(8, 16, 24, 32),
            num_heads=(1, 2, 3, 4),
            sr_ratios=(4, 2, 2, 1),
            mlp_ratios=(2.0, 2.0, 2.0, 2.0),
            num_classes=7,
        )
    ).eval()
    save_file(model.state_dict(), folder / "pvt.safetensors")
    sizes = {"widths": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "heads": [1, 2, 3, 4], "sr_ratios": [4, 2, 2, 1]}
    return (
        model,
        folder / "pvt.safetensors",
        "pvt_v2",
        LoadRequest(image_size=32, arguments={**sizes, "mlp_ratios": [2.0] * 4}),
    )


def as_hugging_face_pvt_v2(folder: Path):
    configuration: Any = transformers.PvtV2Config
    config = configuration(
        image_size=32,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
        sr_ratios=[4, 2, 2, 1],
        num_labels=7,
    )
    model = redraw(transformers.PvtV2ForImageClassification(config)).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


def as_hugging_face_pvt(folder: Path):
    config = transformers.PvtConfig(
        image_size=32,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
        sequence_reduction_ratios=[4, 2, 2, 1],
        num_labels=7,
    )
    model = redraw(transformers.PvtForImageClassification(config)).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


SWIN = {"image_size": 32, "patch": 2, "width": 12, "depths": [2, 2], "heads": [2, 3], "window": 4}


def as_timm_swin(folder: Path):
    model = redraw(
        timm.models.swin_transformer.SwinTransformer(
            img_size=32, patch_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4, num_classes=7
        )
    ).eval()
    torch.save({"model": model.state_dict()}, folder / "swin.pth")
    return model, folder / "swin.pth", "swin", LoadRequest(arguments=SWIN)


def as_torchvision_swin(folder: Path):
    model = redraw(
        torchvision.models.SwinTransformer(
            patch_size=[2, 2], embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=[4, 4], num_classes=7
        )
    ).eval()
    torch.save(model.state_dict(), folder / "swin_t.pth")
    return model, folder / "swin_t.pth", "swin", LoadRequest(arguments=SWIN)


def as_hugging_face_swin(folder: Path):
    configuration: Any = transformers.SwinConfig
    config = configuration(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4, num_labels=7
    )
    model = redraw(transformers.SwinForImageClassification(config)).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


def as_hugging_face_swin_v2(folder: Path):
    configuration: Any = transformers.Swinv2Config
    config = configuration(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4, num_labels=7
    )
    model = redraw(transformers.Swinv2ForImageClassification(config)).eval()
    model.save_pretrained(folder)
    return model, folder, None, LoadRequest()


WRITERS = [value for name, value in list(globals().items()) if name.startswith("as_")]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[3:])
def test_checkpoint_loads_unmodified_and_gives_its_reference_s_logits(
    write: Callable[..., Any], tmp_path: Path
) -> None:
    reference, path, name, request = write(tmp_path)
    loaded = load_foreign(path, name, request)
    assert_same(loaded.module, reference)
    assert "because it has" in loaded.notes[0]


def test_hugging_face_folder_brings_eps_labels_and_preprocessing(tmp_path: Path) -> None:
    config = hf_config(transformers.ViTConfig, id2label={0: "cat", 1: "dog"}, num_labels=2, layer_norm_eps=1e-3)
    redraw(transformers.ViTForImageClassification(config)).eval().save_pretrained(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2}
    processor |= {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_foreign(tmp_path)
    assert loaded.spec.classes == ("cat", "dog")
    assert loaded.spec.arguments["eps"] == 1e-3
    assert loaded.preprocess.mean == (0.1, 0.2, 0.3)
    assert {module.eps for module in loaded.module.modules() if isinstance(module, nn.LayerNorm)} == {1e-3}


def test_averaged_weights_are_preferred_and_the_wrapper_s_prefix_is_stripped(tmp_path: Path) -> None:
    plain, averaged = create_model("t2t", **T2T).state_dict(), create_model("t2t", **T2T).state_dict()
    stored = {
        "epoch": 1,
        "metric": np.float64(0.5),
        "state_dict": plain,
        "state_dict_ema": {f"module.{name}": value for name, value in averaged.items()},
    }
    torch.save(stored, tmp_path / "t2t.pth.tar")
    loaded = load_foreign(tmp_path / "t2t.pth.tar", "t2t", LoadRequest(arguments=T2T))
    torch.testing.assert_close(loaded.module.state_dict()["head.weight"], averaged["head.weight"])
    assert any("state_dict_ema" in note for note in loaded.notes)


T2T = {"image_size": 32, "token_width": 16, "width": 24, "depth": 2, "heads": 3, "num_classes": 7}


def test_original_tnt_and_multi_token_patchconvnet_load(tmp_path: Path) -> None:
    tnt = create_model("tnt", image_size=32, width=24, depth=1, heads=3, inner_width=8, inner_heads=2, num_classes=7)
    torch.save({**tnt.state_dict(), "outer_tokens": torch.zeros(1, 4, 24)}, tmp_path / "tnt.pth")
    sizes = {"image_size": 32, "width": 24, "depth": 1, "heads": 3, "inner_width": 8, "inner_heads": 2}
    loaded = load_foreign(tmp_path / "tnt.pth", "tnt", LoadRequest(arguments=sizes))
    assert any("outer_tokens" in note for note in loaded.notes)

    ours = redraw(
        create_model("patchconvnet", image_size=32, width=32, depth=2, num_classes=12, multi_token=True)
    ).eval()
    state = ours.state_dict()
    for index in range(12):
        state[f"head.{index}.weight"] = state["head.weight"][index : index + 1]
        state[f"head.{index}.bias"] = state["head.bias"][index : index + 1]
    del state["head.weight"], state["head.bias"]
    torch.save(state, tmp_path / "multi.pth")
    sizes = {"image_size": 32, "width": 32, "depth": 2}
    assert_same(load_foreign(tmp_path / "multi.pth", "patchconvnet", LoadRequest(arguments=sizes)).module, ours)


@pytest.mark.parametrize(
    ("write", "rule"),
    [
        (as_timm_safetensors, {"mode": "bicubic", "antialias": True}),
        (as_deit3_training_checkpoint, {"mode": "bicubic"}),
        (as_torchvision_vit, {"mode": "bicubic", "align_corners": True}),
        (as_google_npz, {"mode": "bilinear", "align_corners": True}),
    ],
)
def test_positions_are_resized_once_by_the_rule_of_the_checkpoint_s_own_code(
    write: Callable[..., Any], rule: dict[str, Any], tmp_path: Path
) -> None:
    _, path, name, request = write(tmp_path)
    before = load_foreign(path, name, request).module.pos_embed
    after = load_foreign(path, name, LoadRequest(image_size=48, arguments=request.arguments))
    tokens = before.shape[1] - 16
    grid = before[:, tokens:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(6, 6), **rule).permute(0, 2, 3, 1).reshape(1, 36, 24)
    torch.testing.assert_close(after.module.pos_embed[:, tokens:], expected)
    torch.testing.assert_close(after.module.pos_embed[:, :tokens], before[:, :tokens])
    assert after.preprocess.size == (48, 48)
    assert logits(after.module, torch.randn(1, 3, 48, 48)).shape == (1, 7)


def test_another_number_of_classes_needs_the_reset_to_be_asked_for(tmp_path: Path) -> None:
    _, path, _, _ = as_timm_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"has 7 classes, 3 were asked for.*reset.head"):
        load_foreign(path, "vit", LoadRequest(num_classes=3, arguments={"heads": 3}))
    loaded = load_foreign(path, "vit", LoadRequest(num_classes=3, reset_head=True, arguments={"heads": 3}))
    assert loaded.module.head.weight.shape == (3, 24)
    assert any("new head" in note for note in loaded.notes)


def test_weights_of_another_variant_are_refused_with_names_and_shapes(tmp_path: Path) -> None:
    _, path, _, _ = as_timm_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*another shape \(.* is 24×.*model's is 192"):
        load_foreign(path, "vit_tiny_patch16_224")


@pytest.mark.parametrize(("extra", "hinted"), [("blocks.0.attn.q_norm.weight", True), (None, False)])
def test_another_builder_is_advised_where_parts_differ_and_not_where_the_depth_does(
    tmp_path: Path, extra: str | None, hinted: bool
) -> None:
    state = timm_vit().state_dict()
    arguments = {**HEADS.arguments} if extra else {**HEADS.arguments, "depth": 1}
    if extra:
        state[extra] = state["norm.weight"].clone()
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="left over") as caught:
        load_foreign(tmp_path / "m.safetensors", "vit", LoadRequest(arguments=arguments))
    assert ("takes such weights under timm's name" in str(caught.value)) == hinted


def test_gap_is_named_with_the_nearest_leftover(tmp_path: Path) -> None:
    model = timm_vit()
    state = model.state_dict()
    state["blocks.1.norm1.weights"] = state.pop("blocks.1.norm1.weight")
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"1 missing \(blocks\.1\.norm1\.weight, nearest blocks\.1\.norm1\.weights\); 1 left over",
    ):
        load_foreign(tmp_path / "m.safetensors", "vit", HEADS)


def test_family_of_the_name_must_be_that_of_the_weights(tmp_path: Path) -> None:
    _, path, _, _ = as_timm_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds weights of family 'vit', swin_tiny.* is 'swin'"):
        load_foreign(path, "swin_tiny_patch4_window7_224")


def test_shapes_that_fit_several_variants_ask_for_the_name(tmp_path: Path) -> None:
    with torch.device("cpu"):
        state = create_model("vit_tiny_patch16_224").state_dict()
    save_file(state, tmp_path / "m.safetensors")
    said = (
        r"name it, one of deit_tiny_patch16_224, vit_tiny_patch16_224 \(they differ in resize_size, mean, std\), "
        r"as in vd.export\('deit_tiny_patch16_224', options=vd.ExportOptions\(weights='FILE'\)\)"
    )
    with pytest.raises(CheckpointError, match=said):
        load_foreign(tmp_path / "m.safetensors")


def test_unknown_dialect_is_refused_with_the_first_keys(tmp_path: Path) -> None:
    save_file({"encoder.w": torch.zeros(2), "decoder.w": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"no dialect that is known: 2 tensors, such as .*encoder\.w"):
        load_foreign(tmp_path / "m.safetensors")


def test_nan_is_refused_by_tensor_name(tmp_path: Path) -> None:
    state = timm_vit().state_dict()
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"'norm\.bias' .* NaN"):
        read_weights(tmp_path / "m.pth")


class Launcher:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_pickle_that_runs_code_is_refused_by_the_name_of_what_it_would_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": Launcher()}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"holds '.*print'.*refused"):
        read_weights(tmp_path / "m.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Launcher(), protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        read_weights(tmp_path / "raw.pth")
    assert "never" not in capsys.readouterr().out


def test_yacs_configuration_beside_the_weights_is_inert(tmp_path: Path) -> None:
    import sys
    import types

    module = types.ModuleType("yacs.config")
    vars(module)["CfgNode"] = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    sys.modules["yacs"], sys.modules["yacs.config"] = types.ModuleType("yacs"), module
    try:
        torch.save({"model": timm_vit().state_dict(), "config": module.CfgNode(LR=1.0)}, tmp_path / "swin.pth")
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    assert read_weights(tmp_path / "swin.pth").entry == "model"


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_files_are_refused_by_name(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    if suffix == "npz":
        np.savez(path, **dict[str, Any]({"embedding/kernel": np.zeros((4, 4, 3, 8), np.float32)}))
    else:
        (torch.save if suffix == "pth" else save_file)(timm_vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises((ArtifactError, CheckpointError), match=rf"m\.{suffix}"):
        read_weights(path)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.array([{}], dtype=object))
    with pytest.raises((ArtifactError, CheckpointError), match="object arrays"):
        read_weights(tmp_path / "m.npz")


def test_folder_without_weights_or_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no weights: expected one of model\.safetensors"):
        read_weights(tmp_path)


def test_missing_file_and_text_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file .*gone\.pth"):
        read_weights(tmp_path / "gone.pth")
    (tmp_path / "notes.pth").write_text("not weights at all, just a longer text")
    with pytest.raises(CheckpointError, match="is not a weight file"):
        read_weights(tmp_path / "notes.pth")


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in timm_vit().state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    assert {array.dtype.name for array in read_weights(tmp_path / "m.safetensors").tensors.values()} == {"float32"}


@pytest.mark.parametrize(
    ("convention", "side", "text"),
    [
        ("google", 224, "3x224x224, squashed (bilinear), mean 0.5/0.5/0.5, std 0.5/0.5/0.5"),
        ("deit", 224, f"3x224x224, shorter side to 256 (bicubic), centre crop, {IMAGENET}"),
        ("torchvision", 224, f"3x224x224, shorter side to 256 (bilinear), centre crop, {IMAGENET}"),
        ("swin", 384, f"3x384x384, squashed (bicubic), {IMAGENET}"),
    ],
)
def test_a_convention_is_said_in_numbers(convention: str, side: int, text: str) -> None:
    assert by_convention(convention, None, (side, side))[0].words == text
