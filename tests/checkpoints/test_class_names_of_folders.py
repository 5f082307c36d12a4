"""Class names that a folder of Hugging Face or timm states, and what of them is of no use: the model loads without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification

from vitdeploy.sources.head import HeadEvidence, decide_head
from vitdeploy.sources.load import load, load_source
from vitdeploy.sources.source import SourceOptions, open_source

NAMES = ("cat", "dog")
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "numbered from 1": ({"id2label": {"1": "cat", "2": "dog"}}, "has 2 classes and none for index 0"),
    "a gap": ({"id2label": {"0": "cat", "2": "dog"}}, "has 2 classes and none for index 1"),
    "numbered from 1 by name": ({"label2id": {"cat": 1, "dog": 2}}, "has 2 classes and none for index 0"),
    "too few": ({"id2label": {"0": "cat"}}, "config.json names 1 classes and the model has 2"),
    "too many": ({"id2label": ["cat", "dog", "owl"]}, "config.json names 3 classes and the model has 2"),
    "no numbers": ({"id2label": {"a": "cat", "b": "dog"}}, "does not number the classes"),
    "no names": ({"id2label": {"0": None, "1": "dog"}}, "has None for a class"),
    "no table": ({"id2label": "cat"}, "is str, expected a list"),
    "two orders": ({"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 1, "dog": 0}}, "calls class 1 'cat'"),
}
USABLE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a list": ({"id2label": ["cat", "dog"]}, NAMES),
    "numbers as texts, turned round": ({"id2label": {"dog": "1", "cat": "0"}}, NAMES),
    "by name alone": ({"label2id": {"dog": 1, "cat": 0}}, NAMES),
    "one name for both": ({"id2label": {"0": "cat", "1": "cat"}}, ("cat", "cat")),
    "numbers for names": ({"id2label": {"0": 3, "1": 7}}, ("3", "7")),
}


@pytest.fixture(scope="module", params=["hugging face", "timm", "timm alone"])
def plain_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model with two classes: of transformers, of timm read by a dialect, and built by timm."""
    folder = tmp_path_factory.mktemp("model") / "folder"
    torch.manual_seed(0)
    if request.param == "hugging face":
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
        config = ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=2)
        ViTForImageClassification(config).save_pretrained(folder)
        return folder
    model_args: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    if request.param == "timm alone":
        model_args["global_pool"] = "max"
    module = timm.create_model("vit_tiny_patch16_224", num_classes=2, **model_args)
    timm.models.save_for_hf(module, folder, model_args=model_args)
    return folder


def named(plain: Path, folder: Path, tables: dict[str, Any]) -> Path:
    """Return a copy of a folder whose configuration names its classes in these tables alone."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id", "label_names"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**config, **tables}))
    return folder


@pytest.mark.parametrize("case", UNUSABLE)
def test_names_that_are_of_no_use_are_left_out_and_labels_give_others(
    plain_folder: Path, tmp_path: Path, case: str
) -> None:
    tables, reason = UNUSABLE[case]
    folder = named(plain_folder, tmp_path / "folder", tables)
    loaded = load_source(folder)
    assert loaded.spec.classes == ()
    (note,) = [note for note in loaded.notes if reason in note]
    assert note.endswith("labels='FILE' gives them")

    (tmp_path / "labels.txt").write_text("Katze\nHund\n")
    labelled = load(open_source(folder, SourceOptions(labels=tmp_path / "labels.txt")))
    assert labelled.spec.classes == ("Katze", "Hund")
    assert not [note for note in labelled.notes if "labels=" in note]


@pytest.mark.parametrize("case", USABLE)
def test_names_are_read_in_every_shape(plain_folder: Path, tmp_path: Path, case: str) -> None:
    tables, names = USABLE[case]
    loaded = load_source(named(plain_folder, tmp_path / "folder", tables))
    assert loaded.spec.classes == names
    assert not [note for note in loaded.notes if "labels=" in note]


def test_names_that_several_classes_share_get_one_note(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    for text, shared in (
        ("a\nb\na\n", "'a' for 0, 2"),
        ("x\nX\nx\n", "'x' for 0, 2"),
        ('["a", "b", "b"]', "'b' for 1, 2"),
    ):
        file.write_text(text)
        head = decide_head(HeadEvidence(outputs=3, labels=file))
        assert len(head.classes) == 3
        (note,) = head.notes
        assert f"has one name for several classes: {shared}; a folder of that name fits them all" in note
    file.write_text("a\nb\nc\n")
    assert decide_head(HeadEvidence(outputs=3, labels=file)).notes == ()


def test_names_beside_a_foreign_graph_are_left_out_likewise(tmp_path: Path) -> None:
    for tables, reason in UNUSABLE.values():
        head = decide_head(HeadEvidence(outputs=2, config={"model_type": "vit", **tables}))
        assert head.classes == ()
        assert [note for note in head.notes if reason in note and "labels='FILE' gives them" in note]
