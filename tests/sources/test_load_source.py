"""From a text to a model: what is taken, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import TINY, write_tiny_checkpoint

from vitdeploy.artifacts import Checkpoint, read_checkpoint
from vitdeploy.errors import ArtifactError, CheckpointError, ModelError, UsageError
from vitdeploy.preprocess import preprocess_from
from vitdeploy.sources import hubs
from vitdeploy.sources.load import load, load_source
from vitdeploy.sources.source import SourceOptions, open_source

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


def test_a_checkpoint_of_ours_says_itself_what_it_is(tiny_checkpoint: Checkpoint) -> None:
    loaded = load_source(str(tiny_checkpoint.path))
    assert loaded.spec == tiny_checkpoint.manifest.model
    assert loaded.preprocess == tiny_checkpoint.manifest.preprocess
    assert loaded.digest == tiny_checkpoint.digest
    assert not loaded.module.training
    stored = tiny_checkpoint.tensors()
    for name, tensor in loaded.module.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name])


def test_our_checkpoint_as_weights_must_be_of_the_model_that_is_named(tiny_checkpoint: Checkpoint) -> None:
    assert load_source("vit", weights=tiny_checkpoint.path).digest == tiny_checkpoint.digest
    with pytest.raises(CheckpointError, match="is of model 'tiny', not 'swin': leave the name out"):
        load_source("swin", weights=tiny_checkpoint.path)


def test_random_weights_are_the_same_for_the_same_seed_and_leave_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    digests = [load_source("vit", random_weights=True, arguments=TINY, seed=seed).digest for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_weights_say_so() -> None:
    loaded = load_source("vit", random_weights=True, arguments=TINY)
    assert loaded.notes == ("the weights are random: graph, size and speed are those of the model, accuracy is none",)
    assert loaded.origin == "vit, random weights"


def test_a_catalogue_name_brings_its_preprocessing_and_imagenets_classes() -> None:
    loaded = load_source("vit_tiny_patch16_224", random_weights=True)
    assert loaded.preprocess.size == (224, 224)
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
    assert len(loaded.spec.classes) == 1000
    assert loaded.spec.arguments["width"] == 192


def test_another_size_or_number_of_classes_changes_preprocessing_and_classes() -> None:
    arguments = {"image_size": 64, "num_classes": 7}
    loaded = load_source("vit_tiny_patch16_224", random_weights=True, arguments=arguments)
    assert loaded.preprocess.size == (64, 64)
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
    assert loaded.spec.classes == ()


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("vit_tiny_patch16_224", {}, UsageError, "needs weights: weights='FILE', or random_weights=True"),
        ("vit_tiny_patch16_225", {"random_weights": True}, ModelError, "did you mean vit_tiny_patch16_224"),
        ("model.safetensors", {}, ArtifactError, "there is no file 'model.safetensors'"),
        ("folder/model", {}, ArtifactError, "there is no file 'folder/model'"),
        ("vit", {"weights": "missing.pth"}, ArtifactError, "there is no file 'missing.pth'"),
        ("vit", {"weights": __file__, "random_weights": True}, UsageError, "contradict each other"),
        (__file__, {"random_weights": True}, UsageError, "brings its own weights, so random_weights=True has no place"),
        (__file__, {}, CheckpointError, "is not a weight file"),
        ("hf:./nowhere", {}, CheckpointError, "there is no folder './nowhere': download the model"),
        ("vit", {"random_weights": True, "arguments": {"wdith": 3}}, ModelError, "no argument 'wdith'"),
        (
            "timm:vit_tinny_patch16_224",
            {},
            ModelError,
            "timm has no model 'vit_tinny_patch16_224': did you mean vit_tiny",
        ),
        (
            "timm:vit_tiny_patch16_224",
            {"random_weights": True, "arguments": {"depth": "x"}},
            ModelError,
            "timm cannot build",
        ),
        ("torchvision:vit_b_17", {}, ModelError, "no classification model 'vit_b_17': did you mean vit_b_16"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(
    source: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_source(source, **options)
    assert "\n" not in str(caught.value)


def test_another_head_of_a_checkpoint_of_ours_is_drawn_on_request_only(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="has 10 classes, 3 were asked for: reset_head=True draws a new head"):
        load_source(str(tiny_checkpoint.path), arguments={"num_classes": 3})
    with pytest.raises(UsageError, match=r"reset_head=True of .* needs the number of classes"):
        load_source(str(tiny_checkpoint.path), reset_head=True)
    loaded = load_source(str(tiny_checkpoint.path), arguments={"num_classes": 3}, reset_head=True)
    assert loaded.module.head.weight.shape[0] == loaded.spec.arguments["num_classes"] == 3
    assert loaded.notes == ("the head is new, for 3 classes: head.weight, head.bias",)


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    from vitdeploy.artifacts import write_checkpoint

    tensors = tiny_checkpoint.tensors()
    del tensors["head.bias"]
    path = write_checkpoint(tmp_path / "gap.safetensors", tensors, tiny_checkpoint.manifest).path
    with pytest.raises(CheckpointError, match=r"does not fit the model: 1 missing \(head.bias"):
        load_source(str(path))


def test_any_timm_model_comes_with_its_own_preprocessing() -> None:
    loaded = load_source(
        "timm:deit3_small_patch16_224", random_weights=True, arguments={"depth": 1, "embed_dim": 48, "num_heads": 3}
    )
    assert loaded.spec.family == "timm"
    assert loaded.preprocess == preprocess_from("timm:deit3_small_patch16_224")
    assert len(loaded.spec.classes) == 1000


def test_timm_weights_are_taken_from_a_file_with_their_own_number_of_classes(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=7, **SMALL)
    save_file(module.state_dict(), tmp_path / "timm.safetensors")
    loaded = load_source("timm:vit_tiny_patch16_224", weights=tmp_path / "timm.safetensors", arguments=SMALL)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module.eval()(x))
    assert loaded.spec.arguments["num_classes"] == 7
    assert loaded.spec.classes == ()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_source("timm:vit_tiny_patch16_224", weights=tmp_path / "timm.safetensors", arguments={**SMALL, "depth": 2})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Nothing answers, and nothing is cached."""
    from huggingface_hub import constants

    asked: list[str] = []

    def answers(url: str) -> bool:
        asked.append(url)
        return False

    monkeypatch.setattr(hubs, "answers", answers)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    yield asked
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "timm:vit_tiny_patch16_224",
            r"cannot be fetched \(the hub does not answer.*\): weights='FILE' loads weights",
        ),
        (
            "hf:google/vit",
            r"'hf:google/vit' cannot be fetched \(the hub does not answer.*: download the model and name",
        ),
        (
            "torchvision:vit_b_32",
            r"cannot be fetched \(.*Name or service not known.*\): weights='FILE' loads weights",
        ),
    ],
)
def test_a_hub_that_cannot_be_reached_names_the_local_way(no_network: list[str], source: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_source(source)
    assert "\n" not in str(caught.value)
    assert len(no_network) == (0 if source.startswith("torchvision") else 1), "the hub is asked once, not for a minute"


def test_nothing_is_asked_of_the_network_where_no_hub_is_named(
    no_network: list[str], tiny_checkpoint: Checkpoint
) -> None:
    load_source(str(tiny_checkpoint.path))
    load_source("timm:vit_tiny_patch16_224", random_weights=True, arguments=SMALL)
    assert no_network == []


def test_a_model_that_timm_has_no_weights_for_is_refused_without_a_connection() -> None:
    with pytest.raises(CheckpointError, match="timm publishes no weights for 'vit_base_patch16_18x2_224'"):
        load_source("timm:vit_base_patch16_18x2_224")


def test_torchvision_weights_are_taken_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(1)
    module = get_model("squeezenet1_1", weights=None)
    torch.save(module.state_dict(), tmp_path / "sq.pth")
    loaded = load_source("torchvision:squeezenet1_1", weights=tmp_path / "sq.pth")
    assert (loaded.preprocess.size, loaded.preprocess.resize_size) == ((224, 224), 256)
    assert loaded.preprocess.interpolation == "bilinear"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module.eval()(x))


def test_weights_of_another_dialect_find_the_catalogues_model(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(2)
    module = timm.create_model("vit_tiny_patch16_224").eval()
    save_file(module.state_dict(), tmp_path / "vit.safetensors")
    loaded = load_source("vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), module(x), atol=1e-5)
    assert "timm" in loaded.origin
    assert loaded.notes


def test_a_checkpoint_is_verified_when_it_is_loaded(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "x.safetensors")
    data = bytearray(checkpoint.path.read_bytes())
    data[-3] ^= 4
    checkpoint.path.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match the digest in its manifest"):
        load_source(str(checkpoint.path))
    with pytest.raises(ArtifactError):
        read_checkpoint(checkpoint.path)


@pytest.mark.parametrize("named", [None, "record", "timm"])
def test_a_preprocessing_that_is_named_leaves_no_note_on_the_one_that_is_not_stated(
    tmp_path: Path, named: str | None
) -> None:
    arguments = {"image_size": 224, "patch": 16, "width": 16, "depth": 1, "heads": 2, "num_classes": 2}
    drawn = load_source("vit", random_weights=True, arguments=arguments)
    torch.save(drawn.module.state_dict(), tmp_path / "own.pth")
    record = (
        drawn.preprocess
        if named == "record"
        else None
        if named is None
        else preprocess_from("timm:vit_tiny_patch16_224")
    )
    options = SourceOptions(weights=tmp_path / "own.pth", arguments=arguments, preprocess=record)
    notes = load(open_source("vit", options)).notes
    unstated = [note for note in notes if "does not state its preprocessing" in note]
    assert len(unstated) == (named is None)
    assert all("mean 0.5/0.5/0.5, std 0.5/0.5/0.5)" in note for note in unstated)
    assert all(note.endswith("; preprocess= sets another") for note in unstated)
