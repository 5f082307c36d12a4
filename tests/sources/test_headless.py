"""Features in place of logits: what the head of a classifier reads, for every family and kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_onnx import FOREIGN, write_foreign
from torch import nn

from vitdeploy.artifacts import Checkpoint, read_checkpoint, write_checkpoint
from vitdeploy.errors import CheckpointError, GraphError, ModelError, UsageError
from vitdeploy.models import model_from_spec
from vitdeploy.preprocess import DIGITS_PREPROCESS, normalize
from vitdeploy.records import Manifest, ModelSpec, Preprocess
from vitdeploy.runtime.predictor import load as load_artifact
from vitdeploy.sources.load import LoadedModel, load
from vitdeploy.sources.source import SourceOptions, open_source
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.stages.convert import convert
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.training.small import small_member

pytestmark = pytest.mark.slow

AS_IT_IS, FEATURES = SourceOptions(), SourceOptions(task="features")
SIZE = (32, 32)


def written(path: Path, family: str, name: str = "", **arguments: Any) -> Checkpoint:
    """Write a checkpoint of a small member of a family, with weights that are nowhere zero."""
    shape = {} if family in ("timm", "torchvision") else {**small_member(family, SIZE), "image_size": list(SIZE)}
    given = {**shape, "num_classes": 4, **arguments}
    spec = ModelSpec(family=family, name=name or family, arguments=given, classes=("ant", "bee", "cat", "dog"))
    torch.manual_seed(0)
    module = model_from_spec(spec)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    side = 224 if family == "torchvision" else 32
    preprocess = Preprocess(size=(side, side), resize_size=side, mean=(0.5,) * 3, std=(0.5,) * 3)
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    return write_checkpoint(
        path / "own.safetensors", tensors, Manifest(kind="checkpoint", model=spec, preprocess=preprocess)
    )


def loaded(source: Any, options: SourceOptions = AS_IT_IS) -> LoadedModel:
    return load(open_source(source, options))


def images(model: LoadedModel) -> torch.Tensor:
    return torch.randn(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read_by(head: nn.Module, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what a layer reads when the module runs."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    module(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "family", ["vit", "vit_pytorch", "hybrid", "t2t", "tnt", "pvt", "pvt_v2", "swin", "swin_v2", "patchconvnet"]
)
def test_features_are_what_the_head_reads(tmp_path: Path, family: str) -> None:
    checkpoint = written(tmp_path, family)
    whole, bare = loaded(checkpoint), loaded(checkpoint, FEATURES)
    x = images(whole)
    expected = read_by(whole.module.head, whole.module, x)  # type: ignore[arg-type]
    with torch.no_grad():
        found = bare.module(x)
        torch.testing.assert_close(whole.module.head(found), whole.module(x))
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, whole.module.head.in_features)
    assert (bare.spec.task, bare.spec.classes, bare.spec.arguments["num_classes"]) == ("features", (), 0)
    assert bare.weights_sha256 == checkpoint.manifest.payload_sha256
    assert not any(name.startswith("head") for name in bare.module.state_dict())


def test_of_two_heads_the_features_are_the_mean_of_what_both_read(tmp_path: Path) -> None:
    """As timm has it: forward_head(pre_logits=True) of a distilled model."""
    checkpoint = written(tmp_path, "deit")
    whole, bare = loaded(checkpoint), loaded(checkpoint, FEATURES)
    x = images(whole)
    both = [read_by(head, whole.module, x) for head in (whole.module.head, whole.module.head_dist)]  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(bare.module(x), (both[0] + both[1]) / 2)


def test_the_hidden_layer_before_the_head_belongs_to_the_features(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, "vit", representation_size=24)
    whole, bare = loaded(checkpoint), loaded(checkpoint, FEATURES)
    with torch.no_grad():
        found = bare.module(images(whole))
    assert found.shape == (2, 24)
    torch.testing.assert_close(found, read_by(whole.module.head, whole.module, images(whole)))  # type: ignore[arg-type]


def test_a_token_for_each_class_is_no_feature_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a token for each class and none for the image: it gives no features"):
        loaded(written(tmp_path, "patchconvnet", multi_token=True), FEATURES)


SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", SMALL),
        ("vit_base_patch16_rpn_224", SMALL),
        ("deit_tiny_distilled_patch16_224", SMALL),
        ("levit_128s", {}),
        ("convnext_atto", {}),
    ],
)
def test_features_of_timm_are_those_before_its_logits(name: str, arguments: dict[str, Any]) -> None:
    options = SourceOptions(random_weights=True, seed=3, arguments=arguments)
    whole = loaded(f"timm:{name}", options)
    bare = loaded(f"timm:{name}", SourceOptions(random_weights=True, seed=3, arguments=arguments, task="features"))
    x = images(whole)
    with torch.no_grad():
        module: Any = whole.module
        torch.testing.assert_close(bare.module(x), module.forward_head(module.forward_features(x), pre_logits=True))


@pytest.mark.parametrize(
    ("name", "head"),
    [("vit_b_16", "heads.head"), ("swin_t", "head"), ("resnet18", "fc"), ("convnext_tiny", "classifier.2")],
)
def test_features_of_torchvision_are_what_its_last_linear_reads(name: str, head: str) -> None:
    whole = loaded(f"torchvision:{name}", SourceOptions(random_weights=True))
    bare = loaded(f"torchvision:{name}", SourceOptions(random_weights=True, task="features"))
    x = images(whole)[:1]
    with torch.no_grad():
        torch.testing.assert_close(bare.module(x), read_by(whole.module.get_submodule(head), whole.module, x))


def test_a_model_whose_logits_are_pooled_from_a_convolution_has_none() -> None:
    with pytest.raises(ModelError, match="'torchvision:squeezenet1_0' has no linear head"):
        loaded("torchvision:squeezenet1_0", SourceOptions(random_weights=True, task="features"))


def test_none_of_the_classes_is_the_same_as_the_task() -> None:
    asked = [FEATURES, SourceOptions(arguments={"num_classes": 0})]
    options = [SourceOptions(random_weights=True, task=one.task, arguments={**SMALL, **one.arguments}) for one in asked]
    found = [loaded("timm:vit_tiny_patch16_224", one) for one in options]
    assert found[0].spec == found[1].spec
    x = images(found[0])
    with torch.no_grad():
        torch.testing.assert_close(found[0].module(x), found[1].module(x))


@pytest.mark.parametrize(
    "changes",
    [{"labels": "names.txt"}, {"reset_head": True, "arguments": {"num_classes": 3}}, {"arguments": {"num_classes": 3}}],
)
def test_features_and_classes_contradict_each_other(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave"):
        loaded(written(tmp_path, "vit"), SourceOptions(task="features", **changes))


@pytest.mark.parametrize("with_head", [True, False])
def test_weights_of_another_make_are_taken_with_and_without_a_head(tmp_path: Path, with_head: bool) -> None:
    import timm

    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5 if with_head else 0, **arguments).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    bare = loaded("vit_tiny_patch16_224", SourceOptions(weights=tmp_path / "theirs.pth", task="features"))
    x = images(bare)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(bare.module(x), expected, atol=1e-5, rtol=1e-4)
    if not with_head:
        with pytest.raises(CheckpointError, match="no classification head: task='features' takes it as it is"):
            loaded("vit_tiny_patch16_224", SourceOptions(weights=tmp_path / "theirs.pth"))


def test_a_head_that_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32)
    theirs.head = nn.Sequential(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 5))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    bare = loaded("vit_tiny_patch16_224", SourceOptions(weights=tmp_path / "theirs.pth", task="features"))
    x = images(bare)
    with torch.no_grad():
        expected = theirs.eval().forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(bare.module(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("with_head", [True, False])
def test_a_file_of_timm_under_its_name(tmp_path: Path, with_head: bool) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5 if with_head else 0, **SMALL).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    options = SourceOptions(weights=tmp_path / "theirs.pth", arguments=SMALL, task="features")
    bare = loaded("timm:vit_tiny_patch16_224", options)
    x = images(bare)
    with torch.no_grad():
        torch.testing.assert_close(bare.module(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))


def test_a_converted_model_keeps_no_head_and_is_trained_with_a_new_one(tmp_path: Path) -> None:
    checkpoint = convert(written(tmp_path, "swin"), tmp_path / "bare.safetensors", options=FEATURES)
    assert checkpoint.manifest.model.task == "features"
    assert not any(name.startswith("head") for name in checkpoint.tensors())
    again = loaded(read_checkpoint(checkpoint.path), SourceOptions(head_for=3, seed=1))
    assert again.notes == ("the head is new, for 3 classes: head.weight, head.bias",)
    assert (again.spec.task, again.spec.arguments["num_classes"]) == ("single-label", 3)
    assert torch.equal(again.module.state_dict()["norm.weight"], torch.from_numpy(checkpoint.tensors()["norm.weight"]))


def test_an_exported_graph_gives_features_and_is_compared_with_them(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    checkpoint.write_bytes(tiny_checkpoint.path.read_bytes())
    model = export(checkpoint, tmp_path / "bare.onnx", options=ExportOptions(task="features"))
    assert model.manifest.model.task == "features"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    with load_artifact(model) as predictor:
        found = predictor.embed(list(pixels))
    bare = loaded(checkpoint, FEATURES)
    with torch.no_grad():
        expected = bare.module(torch.from_numpy(normalize(pixels, DIGITS_PREPROCESS))).numpy()
    assert found.shape == (3, 32)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    options = BenchOptions(iterations=2, samples=20, processes=False)
    report = bench(model, "digits:test", options=options)
    rows = {row.name: row for row in report.rows}
    assert report.baseline.accuracy_against == "PyTorch eager FP32 of tiny.safetensors"
    assert rows["bare.onnx"].logits_sqnr_db > 80


def test_of_a_foreign_classifier_the_graph_up_to_its_head_is_taken(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    model = export(source, tmp_path / "bare.onnx", options=ExportOptions(preprocess="digits", task="features"))
    whole = export(source, tmp_path / "whole.onnx", options=ExportOptions(preprocess="digits"))
    with load_artifact(model) as predictor, load_artifact(whole) as classifier:
        found = predictor.embed(list(pixels))
        np.testing.assert_allclose(found, classifier.embed(list(pixels)), atol=1e-5)
    assert found.shape == (3, 64)
    assert model.manifest.model.arguments["num_classes"] == 64


def test_a_foreign_graph_that_gives_features_stays_as_it_is(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx", text=FOREIGN.replace("scores", "embedding"))
    model = export(source, tmp_path / "bare.onnx", options=ExportOptions(preprocess="digits", task="features"))
    assert model.manifest.model.arguments["num_classes"] == 10


def test_a_foreign_classifier_without_a_linear_head_is_refused(tmp_path: Path) -> None:
    source = write_foreign(
        tmp_path / "foreign.onnx", text=FOREIGN.replace("scores = Add(b, y)", "o2 = Add(b, y) scores = Mul(o2, two)")
    )
    with pytest.raises(GraphError, match="not from one linear layer"):
        export(source, tmp_path / "bare.onnx", options=ExportOptions(preprocess="digits", task="features"))
    assert not (tmp_path / "bare.onnx").exists()
