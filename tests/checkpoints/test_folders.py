"""Folders of weights: as timm's hub, Hugging Face and trainers leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm_vit import HEADS, assert_loads, vit

from vitdeploy.checkpoints import load_foreign
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source


@pytest.mark.parametrize("prefix", ["", "local-dir:", "timm:local-dir:", "hf:"])
def test_folders_of_timm_bring_name_preprocessing_and_classes(prefix: str, tmp_path: Path) -> None:
    """In the layout that timm's push to the hub and its save_for_hf write."""
    folder = tmp_path / "hub"
    folder.mkdir()
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [3, 224, 224], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "label_names": ["a", "b", "c"]}
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": pretrained}))
    loaded = load_source(f"{prefix}{folder}")
    assert (loaded.spec.name, loaded.spec.classes) == ("vit_tiny_patch16_224", ("a", "b", "c"))
    assert (loaded.preprocess.mean, loaded.preprocess.resize_size) == ((0.1, 0.2, 0.3), 280)


@pytest.mark.parametrize("beside", [("trainer_state.json", "training_args.bin"), ("optimizer.bin", "scheduler.bin")])
def test_folders_of_trainers_hold_more_than_weights(beside: tuple[str, str], tmp_path: Path) -> None:
    """Of Hugging Face's Trainer and of Accelerate, which has no config.json."""
    reference = vit()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    for name in beside:
        (tmp_path / name).write_bytes(b"{}")
    assert_loads(tmp_path, reference)


@pytest.mark.parametrize(
    ("changes", "size"),
    [({"image_size": [32, 48]}, (32, 48)), ({"image_size": [32, 32]}, (32, 32)), ({"patch_size": [8, 8]}, (32, 32))],
)
def test_sizes_of_hugging_face_may_be_lists(tmp_path: Path, changes: dict[str, Any], size: tuple[int, int]) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    config |= {"image_size": 32, "patch_size": 8, "num_labels": 5, **changes}
    module = ViTForImageClassification(ViTConfig(**config)).eval()
    module.save_pretrained(tmp_path / "folder")
    loaded = load_foreign(tmp_path / "folder")
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), module(x).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("names", [("model_best.pth.tar", "last.pth.tar"), ("epoch=1.ckpt",), ("1.pt", "2.pt")])
def test_a_folder_of_checkpoints_is_no_folder_without_weights(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        torch.save(vit().state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match="name one of its files, such as") as caught:
        load_foreign(tmp_path, "vit", HEADS)
    advised = str(caught.value).rpartition("such as ")[2].strip("'")
    assert_loads(Path(advised), vit())


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ("model-{}.safetensors", "model-2.safetensors' lacks 'blocks.1.attn.proj.bias'"),
        ("pytorch_model-{}.bin", "pytorch_model-2.bin' lacks 'blocks.1.attn.proj.bias'"),
        ("model-{}.safetensors", "model-1.safetensors' lacks 'head.bias'"),
    ],
)
def test_a_shard_without_what_the_index_says_is_in_it_is_no_smaller_model(
    tmp_path: Path, shards: str, said: str
) -> None:
    """Without its last block a model would be taken for one of less depth."""
    state = vit(depth=2).state_dict()
    last = {name: value for name, value in state.items() if name.startswith("blocks.1.")}
    parts = ({name: value for name, value in state.items() if name not in last}, last)
    names = [shards.format(1), shards.format(2)]
    index = {name: names[number] for number, part in enumerate(parts) for name in part}
    for name, part in zip(names, parts, strict=True):
        save = save_file if name.endswith(".safetensors") else torch.save
        save(part, tmp_path / name)
    path = tmp_path / f"{'model.safetensors' if 'safetensors' in shards else 'pytorch_model.bin'}.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert_loads(tmp_path, vit(depth=2))
    damaged = tmp_path / said.partition("'")[0]
    save = save_file if damaged.suffix == ".safetensors" else torch.save
    kept = {"norm.weight": state["norm.weight"]} if damaged.name == names[1] else {**parts[0]}
    kept.pop("head.bias", None)
    save(kept, damaged)
    with pytest.raises(CheckpointError, match=said):
        load_foreign(tmp_path, "vit", HEADS)
