"""The page on checkpoints says what is taken: every container of it holds every wrapper of it around every dialect."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitdeploy.checkpoints.candidates import AVERAGES, HEADS, ORDER, find_candidates
from vitdeploy.checkpoints.dialects import DIALECTS
from vitdeploy.checkpoints.files import NO_WEIGHTS, open_weights

PAGE = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
State = dict[str, torch.Tensor]

NAMES_OF_DIALECTS = {
    "timm": "timm",
    "timm or DeiT repository": "the DeiT repository",
    "DeiT repository": "the DeiT repository",
    "torchvision": "torchvision",
    "Hugging Face": "Hugging Face",
    "Google JAX": "Google JAX",
    "mmpretrain": "mmpretrain",
    "vit-pytorch": "versions from 0.3.0 on",
    "T2T-ViT repository": "their repositories",
    "TNT repository": "its repository",
    "PVT repository": "their repository",
    "Swin repository": "Microsoft",
}
"""The dialects' names in the code, and on the page."""


def table(heading: str) -> dict[str, str]:
    """Return the rows of the table whose first heading this is, first cell → the rest."""
    lines = PAGE.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows: dict[str, str] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, _, rest = line.strip("| ").partition(" | ")
        rows[first] = rest
    return rows


def test_the_dialects_of_the_page_are_those_of_the_code() -> None:
    cells = ", ".join(table("family").values()).replace("v2: ", "")
    listed = re.split("[,;] ", re.sub(r" \([^)]*\)", "", cells))
    assert set(listed) == {NAMES_OF_DIALECTS[dialect.name] for dialect in DIALECTS}
    assert set(NAMES_OF_DIALECTS) == {dialect.name for dialect in DIALECTS}


@pytest.mark.parametrize(
    "family", ["ViT", "DeiT", "hybrid", "T2T", "TNT", "PVT", "Swin", "PatchConvNet", "vit-pytorch"]
)
def test_every_family_has_a_row(family: str) -> None:
    assert any(family in row for row in table("family"))


def nested(*places: str) -> Callable[[State], Any]:
    def nest(state: State) -> Any:
        for place in reversed(places):
            state = {place: state}  # type: ignore[dict-item]
        return state

    return nest


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


WRAPPERS: dict[str, Callable[[State], Any]] = {
    **{name: nested(name) for name in ("state_dict", "model", "model_state_dict", "net", "weights")},
    **{name: nested(name) for name in ("state_dict_ema", "model_ema", "ema", "teacher")},
    **{prefix: prefixed(prefix) for prefix in ("module.", "_orig_mod.", "model.", "backbone.")},
    "total_ops": lambda state: {**state, "total_ops": torch.zeros(1), "n_averaged": torch.tensor(1)},
}


def of_dialect(dialect: str) -> State:
    """Return tensors under the keys that give a dialect away, filled up with others of the same model."""
    keys = {
        "timm": ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        "torchvision": ("class_token", "conv_proj.weight", "encoder.pos_embedding"),
        "Hugging Face": ("vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight"),
        "Swin": ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"),
        "PVT": ("pos_embed1", "block1.0.attn.q.weight"),
    }[dialect]
    return {name: torch.ones(2, 2) for name in (*keys, *(f"norm.part{index}" for index in range(6)))}


def save_pickled(content: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def arrays(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: arrays(value) for key, value in content.items()}
    return content.numpy()


def flat(content: Any, place: str = "") -> State:
    if not isinstance(content, dict):
        return {place: content.clone()}
    return {
        name: value for key, one in content.items() for name, value in flat(one, f"{place}.{key}".strip(".")).items()
    }


def save_safetensors(content: Any, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(flat(content), path)
    return path


def save_shards(content: Any, folder: Path) -> Path:
    folder.mkdir()
    names = list(state := flat(content))
    halves = (names[::2], names[1::2])
    shards = [f"model-0000{index + 1}-of-00002.safetensors" for index in range(2)]
    for shard, half in zip(shards, halves, strict=True):
        save_safetensors({name: state[name] for name in half}, folder / shard)
    where = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def save_torch(content: Any, path: Path, *, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def save_npz(content: Any, path: Path) -> Path:
    named: dict[str, Any] = {name: value.numpy() for name, value in flat(content).items()}
    np.savez(path, **named)
    return path


CONTAINERS: dict[str, Callable[[Any, Path], Path]] = {
    "safetensors": lambda content, place: save_safetensors(content, place / "w.safetensors"),
    "shards": lambda content, place: save_shards(content, place / "shards"),
    "torch.save": lambda content, place: save_torch(content, place / "w.pth", zipped=True),
    "torch.save of old": lambda content, place: save_torch(content, place / "w.pth", zipped=False),
    "pickle.dump": lambda content, place: save_pickled(arrays(content), place / "w.pkl"),
    ".npz": lambda content, place: save_npz(content, place / "w.npz"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_container_holds_any_wrapper_around_any_dialect(tmp_path: Path, container: str, wrapper: str) -> None:
    for index, dialect in enumerate(("timm", "torchvision", "Hugging Face", "Swin", "PVT")):
        place = tmp_path / str(index)
        place.mkdir()
        found = find_candidates(open_weights(CONTAINERS[container](WRAPPERS[wrapper](of_dialect(dialect)), place)))
        assert len(found) == 1, (dialect, found)
        assert set(of_dialect(dialect)) == set(found[0].file.leaves)


def test_the_wrappers_of_the_page_are_those_of_the_code() -> None:
    named = set(re.findall(r"`([\w.]+)`", " ".join(table("wrapper"))))
    nests = {name for name in named if name in ORDER or AVERAGES.fullmatch(name) or name in ("teacher",)}
    assert {"state_dict", "model", "model_state_dict", "net", "weights", "state_dict_ema", "model_ema", "ema"} <= nests
    assert named & set(HEADS) == {"head", "classifier", "fc"}
    assert not any(NO_WEIGHTS.fullmatch(name) for name in nests)
