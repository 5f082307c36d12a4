"""Weights as training scripts really leave them: nests, wrappers, heads, and what stands beside; nothing is run."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import json
import pathlib
import pickle
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm_vit import HEADS, assert_loads, vit, with_prefix
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign, read_weights
from vitdeploy.checkpoints.files import open_weights
from vitdeploy.errors import CheckpointError


class Mode(enum.Enum):
    FAST = "fast"


def as_mmpretrain(state):
    """Return weights under the names of mmpretrain's VisionTransformer and VisionTransformerClsHead."""
    renamed = {}
    for name, value in state.items():
        for old, new in (
            ("patch_embed.proj.", "patch_embed.projection."),
            ("blocks.", "layers."),
            (".norm1.", ".ln1."),
            (".norm2.", ".ln2."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            name = name.replace(old, new)
        name = f"ln1.{name[5:]}" if name.startswith("norm.") else name
        renamed[f"head.layers.{name}" if name.startswith("head.") else f"backbone.{name}"] = value
    return renamed


NESTS = {
    "the ImageNet example": lambda s, _: {
        "epoch": 3, "arch": "resnet18", "state_dict": with_prefix(s, "module."), "best_acc1": torch.tensor(71.5),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "timm's script": lambda s, other: {
        "epoch": 1, "arch": "mine", "args": argparse.Namespace(lr=0.1), "state_dict": other, "state_dict_ema": s,
        "version": 2, "metric": np.float64(71.2),
    },
    "DeiT's script": lambda s, other: {"model": other, "model_ema": s, "scaler": {}, "args": argparse.Namespace()},
    "DDP around compile": lambda s, _: {"model": with_prefix(s, "module._orig_mod.")},
    "compile around DDP": lambda s, _: {"net": with_prefix(s, "_orig_mod.module.")},
    "compiled blocks": lambda s, _: {name.replace("blocks.0.", "blocks.0._orig_mod."): v for name, v in s.items()},
    "AveragedModel": lambda s, _: {"n_averaged": torch.tensor(9), **with_prefix(s, "module.")},
    "Lightning": lambda s, _: {
        "state_dict": {**with_prefix(s, "model."), "criterion.weight": torch.ones(7)}, "global_step": 5,
        "hyper_parameters": {"lr": 0.1}, "callbacks": {"EarlyStopping": {"best": torch.tensor(1.0)}}, "loops": {},
    },
    "Lightning with an average": lambda s, other: {
        "state_dict": {
            **with_prefix(other, "net."), **with_prefix(s, "ema_model.module."),
            "ema_model.n_averaged": torch.tensor(1),
        }
    },
    "DINO": lambda s, other: {"student": with_prefix(other, "module."), "teacher": s, "epoch": 1},
    "profiler": lambda s, _: {**s, "total_ops": torch.zeros(1), "blocks.0.attn.total_params": torch.zeros(1)},
    "backbone and head": lambda s, _: {
        "state_dict": {
            (name if name.startswith("head.") else f"backbone.{name}"): value for name, value in s.items()
        }
    },
    "tables of parts": lambda s, _: {
        "backbone": {name: value for name, value in s.items() if not name.startswith("head.")},
        "classifier": {"weight": s["head.weight"], "bias": s["head.bias"]},
    },
    "fastai": lambda s, _: {"model": s, "opt": {"state": [{"mom": torch.ones(3)}], "hypers": [{"lr": 0.1}]}},
    "ema-pytorch": lambda s, other: {
        **with_prefix(s, "ema_model."), **with_prefix(other, "online_model."),
        "initted": torch.tensor(True), "step": torch.tensor(5),
    },
    "ema-pytorch beside the model": lambda s, other: {
        "model": other, "opt": {}, "ema": {
            **with_prefix(s, "ema_model."), **with_prefix(other, "online_model."),
            "initted": torch.tensor([True]), "step": torch.tensor([5]),
        },
    },
    "FSDP": lambda s, _: {
        name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value
        for name, value in with_prefix(s, "_fsdp_wrapped_module.").items()
    },
    "activation checkpoints": lambda s, _: {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): value for name, value in s.items()
    },
    "catalyst": lambda s, _: {"model_state_dict": s, "optimizer_state_dict": {}, "epoch_metrics": {"a": 1.0}},
    "timm's script with a scaler": lambda s, other: {
        "epoch": 1, "arch": "mine", "args": argparse.Namespace(model="mine", lr=0.1), "state_dict": other,
        "state_dict_ema": s, "amp_scaler": {"scale": 65536.0}, "optimizer": {"state": {}, "param_groups": []},
        "version": 2, "metric": 71.0,
    },
    "mmpretrain": lambda s, _: {
        "meta": {"mmpretrain_version": "1.2.0", "cfg": "model = dict()"}, "state_dict": as_mmpretrain(s),
        "optimizer": {}, "message_hub": {},
    },
    "deep": lambda s, _: {"checkpoint": {"weights": {"model_weights": with_prefix(s, "module.model.")}}},
    "beside harmless things": lambda s, _: {
        "state_dict": s, "path": pathlib.Path("a/b"),
        "when": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc), "took": datetime.timedelta(1),
        "array": np.arange(6).reshape(2, 3), "texts": np.array(["a", "b"]), "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, a=[1]), "mode": Mode.FAST, "seen": {1, 2},
        "last": collections.deque([1, 2]), "frozen": frozenset([1]), "pure": pathlib.PureWindowsPath("c:/x"),
    },
}  # fmt: skip


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("container", ["zip", "legacy", "protocol 4"])
def test_nests_and_wrappers_of_training_scripts(nest: str, container: str, tmp_path: Path) -> None:
    reference = vit()
    each: dict[str, dict[str, Any]] = {
        "zip": {},
        "legacy": {"_use_new_zipfile_serialization": False},
        "protocol 4": {"pickle_protocol": 4},
    }
    options = each[container]
    torch.save(NESTS[nest](reference.state_dict(), vit(1).state_dict()), tmp_path / "model.pth", **options)
    assert_loads(tmp_path / "model.pth", reference)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod.module.", "net.backbone."])
def test_wrappers_in_safetensors_and_shards(prefix: str, tmp_path: Path) -> None:
    reference = vit()
    state = with_prefix(reference.state_dict(), prefix)
    save_file(state, tmp_path / "model.safetensors")
    assert_loads(tmp_path / "model.safetensors", reference)
    (tmp_path / "folder").mkdir()
    names = list(state)
    for index, part in enumerate((names[:9], names[9:])):
        save_file({name: state[name] for name in part}, tmp_path / f"folder/model-{index}.safetensors")
    table = {name: f"model-{int(name in names[9:])}.safetensors" for name in names}
    (tmp_path / "folder/model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert_loads(tmp_path / "folder", reference)


def test_the_average_is_preferred_and_both_are_named(tmp_path: Path) -> None:
    reference = vit()
    torch.save({"state_dict": vit(1).state_dict(), "state_dict_ema": reference.state_dict()}, tmp_path / "m.pth")
    notes = assert_loads(tmp_path / "m.pth", reference).notes
    assert "took the weights under 'state_dict_ema'" in notes
    assert any("'state_dict' fit, too" in note for note in notes)


@pytest.mark.parametrize("average", ["model_ema.module.", "ema.", "ema_model.module."])
def test_weights_that_are_named_are_none_that_stand_beside_the_model(average: str, tmp_path: Path) -> None:
    reference, state = vit(), with_prefix(vit(1).state_dict(), "model.")
    table = {**state, **with_prefix(reference.state_dict(), average)}
    torch.save({"state_dict": table}, tmp_path / "m.pth")
    notes = assert_loads(tmp_path / "m.pth", reference).notes
    assert any("'state_dict.model' fit, too" in note for note in notes)
    assert not [note for note in notes if note.startswith("left out")]
    torch.save({"state_dict": {**table, "criterion.weight": torch.zeros(3)}}, tmp_path / "m.pth")
    notes = assert_loads(tmp_path / "m.pth", reference).notes
    assert "left out what stands beside the model: state_dict.criterion.weight" in notes


def test_where_the_average_does_not_fit_the_raw_weights_are_taken(tmp_path: Path) -> None:
    reference = vit()
    torch.save(
        {"state_dict": reference.state_dict(), "state_dict_ema": vit(1, embed_dim=30).state_dict()}, tmp_path / "m.pth"
    )
    request = LoadRequest(arguments={"heads": 3, "width": 24})
    notes = assert_loads(tmp_path / "m.pth", reference, request).notes
    assert "the weights under 'state_dict_ema' do not fit" in notes
    assert "took the weights under 'state_dict'" in notes


def test_a_teacher_of_another_shape_is_no_average(tmp_path: Path) -> None:
    reference = vit()
    state = {**with_prefix(vit(1, depth=3).state_dict(), "teacher."), **with_prefix(reference.state_dict(), "student.")}
    torch.save({"state_dict": state}, tmp_path / "m.ckpt")
    assert_loads(tmp_path / "m.ckpt", reference)


@pytest.mark.parametrize("name", ["omegaconf.dictconfig.DictConfig", "yacs.config.CfgNode", "addict.addict.Dict"])
def test_configurations_of_packages_that_are_not_installed_are_inert(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their classes are made up here under the names that the packages have, and gone when the file is read."""
    module, _, kind = name.rpartition(".")
    made = types.ModuleType(module)
    setattr(made, kind, type(kind, (dict,), {"__module__": module}))
    reference = vit()
    parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    with monkeypatch.context() as patch:
        for parent in parents:
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, module, made)
        config = getattr(made, kind)(lr=0.1, model={"name": "x"})
        torch.save({"state_dict": reference.state_dict(), "cfg": config}, tmp_path / "m.pth")
    assert_loads(tmp_path / "m.pth", reference)


def test_an_oblong_image_is_not_taken_for_a_square_one_without_a_token(tmp_path: Path) -> None:
    """4×6 patches and a class token are as many positions as 5×5 patches; mmpretrain's token has one always."""
    reference = vit(img_size=(32, 48))
    torch.save(as_mmpretrain(reference.state_dict()), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="do not tell which image size it is for"):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)
    request = LoadRequest(image_size=(32, 48), arguments={"heads": 3})
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        loaded = load_foreign(tmp_path / "m.pth", "vit", request).module(x)
        torch.testing.assert_close(loaded, reference(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_pickles_of_arrays(protocol: int, tmp_path: Path) -> None:
    reference = vit()
    arrays = {name: value.numpy() for name, value in reference.state_dict().items()}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    assert_loads(tmp_path / "m.pkl", reference)


def test_bfloat16_half_and_views_keep_their_values(tmp_path: Path) -> None:
    state = {
        name: value.bfloat16() if index % 2 else value.half()
        for index, (name, value) in enumerate(vit().state_dict().items())
    }
    state["head.weight"] = torch.randn(24, 7).T  # a view with other strides
    torch.save(state, tmp_path / "m.pth")
    read = read_weights(tmp_path / "m.pth").tensors
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.float().numpy())


def test_a_view_that_repeats_its_numbers_is_said_to_be_one(tmp_path: Path) -> None:
    """torch stores one number for it; what it unfolds to has no bound."""
    torch.save({**vit().state_dict(), "norm.bias": torch.zeros(1).expand(24)}, tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"'norm\.bias' .* repeats its 1 numbers to the shape \[24\]; \.contiguous\(\)"
    ):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)


class Launcher:
    def __reduce__(self):
        return print, ("this must never be printed",)


class Builder:
    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("thing", "name"), [(Launcher(), "builtins.print"), (Builder(), r"test_containers\.Builder")])
def test_anything_else_is_refused_by_name_and_never_called(
    thing: Builder | Launcher, name: str, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": vit().state_dict(), "x": thing}, tmp_path / "m.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=rf"holds '.*{name}'.*refused"):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)
    assert "never" not in capsys.readouterr().out


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    reference = vit()
    torch.save(reference, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"whole pickled module.*torch\.save\(model\.state_dict\(\)"):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)


def execute(message: str, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python that a message advises."""
    monkeypatch.chdir(folder)
    code = message[message.index("torch.save(") : message.index(" in Python")]
    exec(code, {"torch": torch})


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_programs_are_named_and_the_advice_writes_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = vit()
    x = torch.zeros(1, 3, 32, 32)
    torch.jit.trace(reference, x, check_trace=False).save(tmp_path / "traced.pt")
    torch.export.save(torch.export.export(reference, (x,)), tmp_path / "program.pt2")
    for name, kind in (("traced.pt", "a TorchScript program"), ("program.pt2", r"a program of torch\.export")):
        with pytest.raises(CheckpointError, match=kind) as caught:
            load_foreign(tmp_path / name, "vit", HEADS)
        execute(str(caught.value), tmp_path, monkeypatch)
        assert_loads(tmp_path / "weights.pth", reference)


def test_a_tar_of_another_kind_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(CheckpointError, match=r"is a tar archive with 'model\.pth' in it.*unpack it"):
        load_foreign(tmp_path / "m.tar", "vit", HEADS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    ],
)
def test_files_that_are_no_weights_are_named_for_what_they_are(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["visual.transformer.resblocks.0.attn.in_proj_weight", "visual.proj"], "a CLIP of open_clip or OpenAI"),
        (["visual.trunk.blocks.0.attn.qkv.weight", "logit_scale"], "an image tower of open_clip around a timm model"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "a CLIP or SigLIP of Hugging Face"),
        (["cls_token", "blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight"], "a BEiT, which timm builds"),
    ],
)
def test_models_of_no_family_are_named_with_the_way_out(keys: list[str], message: str, tmp_path: Path) -> None:
    torch.save({"model": {key: torch.ones(2, 2) for key in keys}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=f"{message}.*torch.onnx.export, and vd.export"):
        load_foreign(tmp_path / "other.pth", "vit", HEADS)


class WithNormalization(nn.Module):
    """A model that takes pixels in 0…1, as code for attacks has it."""

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1) * scale)
        self.register_buffer("std", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1) * scale)
        self.model = model


@pytest.mark.parametrize(
    "state",
    [
        lambda model: WithNormalization(model).state_dict(),
        lambda model: {"net": with_prefix(WithNormalization(model, 255.0).state_dict(), "module.")},
        lambda model: {
            **with_prefix(model.state_dict(), "1."), "0.mean": torch.tensor([0.4, 0.5, 0.6]),
            "0.std": torch.tensor([0.1, 0.2, 0.3]),
        },
    ],
)  # fmt: skip
def test_a_layer_of_mean_and_std_before_the_model_is_its_preprocessing(tmp_path: Path, state: Any) -> None:
    model = vit()
    torch.save(state(model), tmp_path / "w.pth")
    loaded = assert_loads(tmp_path / "w.pth", model)
    np.testing.assert_allclose(loaded.preprocess.mean, (0.4, 0.5, 0.6), rtol=1e-6)
    np.testing.assert_allclose(loaded.preprocess.std, (0.1, 0.2, 0.3), rtol=1e-6)
    assert any("layer of mean and std" in note for note in loaded.notes)


def _pruned(module: nn.Module) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(module, "weight", 0.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        _pruned,
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["pruned", "weight norm of old", "weight norm", "spectral norm"],
)
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": with_prefix(state, "model.")}])
def test_weights_in_factors_are_multiplied_out(tmp_path: Path, change: Any, wrap: Any) -> None:
    model: Any = vit()
    change(model.blocks[0].mlp.fc1)
    change(model.head)
    torch.save(wrap(model.eval().state_dict()), tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["float8", "sparse", "quantized"])
def test_tensors_in_another_form_are_told_the_call_that_makes_them_plain(tmp_path: Path, kind: str) -> None:
    model = vit()
    state: dict[str, Any] = dict(model.state_dict())
    if kind == "float8":
        stored = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
        plain = {name: value.float() for name, value in stored.items()}
    elif kind == "sparse":
        stored = {name: value.to_sparse() for name, value in state.items()}
        plain = {name: value.to_dense() for name, value in stored.items()}
    else:
        stored = {name: torch.quantize_per_tensor(value, 0.01, 0, torch.qint8) for name, value in state.items()}
        plain = {name: value.dequantize() for name, value in stored.items()}
    torch.save(stored, tmp_path / "w.pth")
    call = {"float8": "value.float()", "sparse": "value.to_dense()", "quantized": "value.dequantize()"}[kind]
    with pytest.raises(CheckpointError, match="stores tensors in a form that is not read") as caught:
        load_foreign(tmp_path / "w.pth", "vit", HEADS)
    assert call in str(caught.value)
    torch.save(plain, tmp_path / "w.pth")
    model.load_state_dict(plain)
    assert_loads(tmp_path / "w.pth", model)


def test_adapters_are_named(tmp_path: Path) -> None:
    state = with_prefix(vit().state_dict(), "base_model.model.")
    state = {name.replace("attn.qkv.", "attn.qkv.base_layer."): value for name, value in state.items()}
    state["base_model.model.blocks.0.attn.qkv.lora_A.default.weight"] = torch.ones(4, 24)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"adapters beside its weights, which model\.merge_and_unload\(\)"):
        load_foreign(tmp_path / "w.pth", "vit", HEADS)


@pytest.mark.parametrize(
    "names",
    [("a.safetensors", "b.safetensors"), ("a.safetensors", "b.pth"), ("best_model.pth", "last.pth.tar", "x.ckpt")],
)
def test_of_several_files_of_weights_in_a_folder_none_is_picked(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "classes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as raised:
        open_weights(tmp_path)
    text = f"has {len(names)} files of weights ({', '.join(names)}): name one of them, such as '{tmp_path / names[0]}'"
    assert text in str(raised.value)


@pytest.mark.parametrize("beside", ["pytorch_model.bin", "other.safetensors", "best.pth"])
def test_the_usual_name_of_weights_decides_and_a_file_that_is_alone_is_named(tmp_path: Path, beside: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "own.safetensors")
    assert open_weights(tmp_path).path == tmp_path / "own.safetensors"
    (tmp_path / "own.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / beside).write_bytes(b"")
    assert list(open_weights(tmp_path).leaves) == ["a"]
