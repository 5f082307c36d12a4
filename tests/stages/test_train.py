from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notes import Notes
from PIL import Image

from vitdeploy.artifacts import read_checkpoint
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import load_pixels, match_labels, open_dataset
from vitdeploy.datasets.base import Split
from vitdeploy.errors import ArtifactError, CheckpointError, DataError, ModelError, TrainingError, UsageError
from vitdeploy.models import model_from_spec
from vitdeploy.preprocess import normalize
from vitdeploy.records import Preprocess
from vitdeploy.stages.bench import bench
from vitdeploy.stages.export import export
from vitdeploy.stages.train import TrainRequest, train
from vitdeploy.training.options import Augmentation, Distillation, Hardware, TrainOptions
from vitdeploy.training.paths import metrics_path
from vitdeploy.training.recipe import read_training_recipe, recipe_names

pytestmark = pytest.mark.slow

QUICK = TrainOptions(epochs=1, hardware=Hardware(accelerator="cpu", workers=0))
TINY = {"width": 16, "depth": 1, "heads": 2, "patch": 4}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory):
    return train("digits", tmp_path_factory.mktemp("digits") / "vit.safetensors", arguments=TINY, options=QUICK)


@pytest.fixture
def photos(tmp_path: Path):
    """Three classes of 20 images, told apart by colour; modes and sizes as a user's folder has them."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 60, (30 + index, 40, 3), np.uint8)
            pixels[..., 2 - number] += 150
            image = Image.fromarray(pixels)
            mode = ("RGB", "P", "RGBA", "RGB")[index % 4]
            image.convert(mode).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_the_manifest_says_what_was_trained_and_how_good_it_is(digits) -> None:
    """Top-1 of the manifest is that of the stored weights on the stored preprocessing, computed here anew."""
    import torch

    manifest = digits.manifest
    assert manifest.kind == "checkpoint"
    assert manifest.model.family == "vit"
    assert manifest.model.classes == tuple("0123456789")
    assert manifest.model.arguments == {**TINY, "image_size": [8, 8], "channels": 1, "num_classes": 10}
    assert manifest.preprocess == open_dataset("digits").preprocess
    module = model_from_spec(manifest.model).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in digits.tensors().items()})
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        dataset = open_dataset("digits", split=split)
        images = normalize(load_pixels(dataset, manifest.preprocess), manifest.preprocess)
        with torch.no_grad():
            answers = module(torch.from_numpy(images)).argmax(1).numpy()
        assert manifest.metrics[f"{split}_top1"] == pytest.approx(
            (answers == match_labels(dataset, manifest.model.classes)).mean()
        )


def test_validation_alone_chooses_and_the_test_split_is_not_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits
) -> None:
    """With the labels of the test split shuffled, the weights are the same to the bit."""
    from vitdeploy.stages import train as stage

    def shuffled(uri, *, split=None):
        dataset: Any = open_dataset(uri, split=split)
        if split == "test":
            dataset.labels = np.roll(dataset.labels, 1)
        return dataset

    monkeypatch.setattr(stage, "open_dataset", shuffled)
    other = train("digits", tmp_path / "v.safetensors", arguments=TINY, options=QUICK)
    assert other.digest == digits.digest
    assert other.manifest.metrics["test_top1"] != digits.manifest.metrics["test_top1"]


def key_of(data, **options: Any) -> str:
    return TrainRequest.open(data, "unwritten.safetensors", **options).key


def test_the_key_needs_no_training_and_follows_data_model_and_options(digits) -> None:
    key = digits.manifest.key
    assert key == key_of("digits", arguments=TINY, options=QUICK)
    for changed in (
        key_of("digits@1", arguments=TINY, options=QUICK),
        key_of("digits", arguments={**TINY, "depth": 2}, options=QUICK),
        key_of("digits", arguments=TINY, options=replace(QUICK, seed=1)),
        key_of("digits", arguments=TINY, options=replace(QUICK, drop_path=0.1)),
        key_of("digits", options=QUICK),
    ):
        assert changed != key


def test_the_key_is_computed_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vitdeploy.stages.train import TrainRequest; print(TrainRequest.open('digits', 'x.safetensors').key)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == key_of("digits")


def test_a_finished_training_is_not_repeated(digits) -> None:
    notes = Notes()
    before = digits.path.stat().st_mtime_ns
    again = train("digits", digits.path, arguments=TINY, options=QUICK, resume=True, progress=notes)
    assert again.manifest == digits.manifest
    assert digits.path.stat().st_mtime_ns == before
    assert notes.lines == [f"{str(digits.path)!r} is finished: nothing to resume"]


def test_a_folder_of_photographs_trains_with_timms_augmentation(photos, tmp_path: Path) -> None:
    options = replace(
        QUICK, epochs=3, batch=12, learning_rate=1e-3, augmentation=Augmentation(kind="timm", policy=None)
    )
    arguments = {"image_size": 32, "width": 32, "depth": 1, "heads": 2, "patch": 8}
    checkpoint = train(str(photos), tmp_path / "v.safetensors", arguments=arguments, options=options)
    assert checkpoint.manifest.model.classes == ("blue", "green", "red")
    assert checkpoint.manifest.preprocess.size == (32, 32)
    assert checkpoint.manifest.metrics["test_top1"] > 0.9, "colours are easily told apart"


def test_a_small_member_is_chosen_for_a_small_folder_and_the_batch_fits(photos, tmp_path: Path) -> None:
    notes = Notes()
    options = replace(QUICK, batch=64)
    checkpoint = train(str(photos), tmp_path / "v.safetensors", options=options, progress=notes)
    arguments = checkpoint.manifest.model.arguments
    assert (arguments["image_size"], arguments["patch"], arguments["width"]) == ([32, 32], 4, 64)
    assert notes.lines == [
        f"{str(photos)!r} has no folders for splits, so its 60 images are divided: 36 train, 9 validation, 15 test",
        "vit of small size: image_size=32×32, patch=4, width=64, depth=3, heads=4, init=xavier, position_std=0.2",
        "batch 36 instead of 64: the training split has 36 images",
        notes.lines[3],
    ]
    outlook = r"36 images at 32×32, 9 for validation; 1 epoch of 1 update with 36 images: about \d+ s, judged by a few "
    assert re.match(outlook, notes.lines[3])


def test_photographs_much_larger_than_the_small_default_are_told_a_way_to_their_detail(tmp_path: Path) -> None:
    for label, colour in (("a", 0), ("b", 255)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (160, 120), (colour, index, 0)).save(tmp_path / "photos" / label / f"{index}.jpg")
    notes = Notes()
    train(str(tmp_path / "photos"), tmp_path / "v.safetensors", options=QUICK, progress=notes)
    assert notes.lines[2].startswith("the images are about 160×120 pixels and are trained at 32×32, ")
    assert "vit_tiny_patch16_224 with a weight file" in notes.lines[2]


def test_a_catalogue_variant_brings_its_preprocessing_to_another_size(photos, tmp_path: Path) -> None:
    arguments = {"image_size": 32, "depth": 1}
    options = replace(QUICK, batch=12)
    checkpoint = train(
        str(photos), tmp_path / "v.safetensors", model="vit_tiny_patch16_224", arguments=arguments, options=options
    )
    found = checkpoint.manifest.preprocess
    assert (found.size, found.resize_size, found.mean) == ((32, 32), 35, (0.5, 0.5, 0.5))
    assert checkpoint.manifest.model.name == "vit_tiny_patch16_224"


def test_a_trained_model_is_trained_further_on_other_classes(digits, photos, tmp_path: Path) -> None:
    """Everything but the head starts from the weights: at a learning rate of nothing it stays."""
    grey = tmp_path / "grey"
    for folder in photos.iterdir():
        (grey / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            Image.open(file).convert("L").resize((8, 8)).save(grey / folder.name / file.name)
    notes = Notes()
    options = replace(QUICK, batch=36, learning_rate=1e-12, drop_path=0.2)
    further = train(str(grey), tmp_path / "v.safetensors", model=str(digits.path), options=options, progress=notes)
    assert further.manifest.model.classes == ("blue", "green", "red")
    assert further.manifest.model.arguments == {**digits.manifest.model.arguments, "num_classes": 3, "drop_path": 0.2}
    assert further.manifest.preprocess == digits.manifest.preprocess
    assert further.manifest.parents["weights"] == digits.digest
    assert any("the head is new, for 3 classes: head.weight, head.bias" in line for line in notes.lines)
    before, after = digits.tensors(), further.tensors()
    for name in before.keys() - {"head.weight", "head.bias"}:
        np.testing.assert_allclose(after[name], before[name], atol=1e-9, err_msg=name)
    assert after["head.weight"].shape == (3, 16)


def test_a_trained_model_keeps_its_head_where_the_classes_are_the_same(digits, tmp_path: Path) -> None:
    options = replace(QUICK, learning_rate=1e-12)
    further = train("digits", tmp_path / "v.safetensors", model=str(digits.path), options=options)
    np.testing.assert_allclose(further.tensors()["head.weight"], digits.tensors()["head.weight"], atol=1e-9)
    assert further.manifest.metrics["validation_top1"] == digits.manifest.metrics["validation_top1"]


def test_a_student_learns_from_a_teacher_of_the_same_classes(digits, photos, tmp_path: Path) -> None:
    options = replace(QUICK, epochs=3, distillation=Distillation(str(digits.path), kind="soft", weight=1.0))
    student = train("digits", tmp_path / "v.safetensors", model="deit", arguments=TINY, options=options)
    assert student.manifest.parents["teacher"] == digits.digest
    losses = [json.loads(line)["loss"] for line in metrics_path(student.path).read_text().splitlines()]
    assert losses[2] < losses[1] < losses[0]
    with pytest.raises(UsageError, match=r"teacher '.*' takes 1×8×8, and the student 3×32×32"):
        train(str(photos), tmp_path / "w.safetensors", arguments=TINY, options=options)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"arguments": {"depth": 2}}, CheckpointError, "'blocks.1.attn.proj.bias' is in one of the two"),
        (
            {"arguments": {"mlp_ratio": 2.0}},
            CheckpointError,
            r"is \[64, 16\] in the weights and \[32, 16\] with these arguments",
        ),
        ({"arguments": {"num_classes": 3}}, UsageError, "num_classes is 3, and 'digits:train' has 10"),
        (
            {"preprocess": Preprocess(size=(8, 8), resize="none", mean=(0,) * 3, std=(1,) * 3)},
            UsageError,
            r"gives images of 3×8×8, and .* takes 1×8×8",
        ),
    ],
)
def test_what_does_not_fit_trained_weights_is_refused(
    digits, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train("digits", tmp_path / "v.safetensors", model=str(digits.path), options=QUICK, **settings)
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_and_names_of_classes_can_be_given(digits, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {index}\n" for index in range(10)))
    own = Preprocess(size=(8, 8), channels=1, resize="none", crop="none", mean=(0.5,), std=(0.25,), source="mine")
    for start in ({"arguments": TINY}, {"model": str(digits.path)}):
        made = train("digits", tmp_path / "v.safetensors", options=QUICK, preprocess=own, labels=labels, **start)
        assert made.manifest.preprocess == own
        assert made.manifest.model.classes[7] == "digit 7"
    labels.write_text("a\nb\n")
    with pytest.raises(DataError, match="'digits:train' has 10 classes, and 2 names were given"):
        train("digits", tmp_path / "v.safetensors", arguments=TINY, options=QUICK, labels=labels)
    labels.write_text("".join(f"{index}\n" for index in (1, 0, *range(2, 10))))
    with pytest.raises(DataError, match="class 0 of 'digits:train' is called '0', and the names have that at 1"):
        train("digits", tmp_path / "v.safetensors", arguments=TINY, options=QUICK, labels=labels)


def one_class(folder) -> None:
    (folder / "only").mkdir(parents=True)
    for index in range(5):
        Image.new("RGB", (8, 8)).save(folder / "only" / f"{index}.png")


def unlabelled(folder) -> None:
    folder.mkdir()
    for index in range(9):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")


def other_classes(folder) -> None:
    for split, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8)).save(folder / split / name / f"{index}.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_class, "has one class only, 'only'"),
        (unlabelled, "has no labels"),
        (other_classes, "has class folders that 'train' lacks: 'c'"),
    ],
)
def test_data_that_cannot_teach_is_refused_and_nothing_is_written(
    tmp_path: Path, make: Callable[..., Any], message: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        train(str(tmp_path / "data"), tmp_path / "v.safetensors", options=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "vit_tinny_patch16_224"}, ModelError, "did you mean vit_tiny_patch16_224"),
        ({"arguments": {"num_classes": 7}}, UsageError, "num_classes is 7, and 'digits:train' has 10"),
        ({"arguments": {"channels": 3}}, UsageError, "channels is 3, and the preprocessing gives 1"),
        ({"arguments": {"patch": 3}}, ModelError, "image_size 8×8 does not divide by patch 3"),
        ({"arguments": {"dept": 3}}, ModelError, "family 'vit' has no argument 'dept'"),
    ],
)
def test_settings_that_contradict_the_data_are_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    output = tmp_path / "v.safetensors"
    with pytest.raises(error, match=message):
        train("digits", output, options=QUICK, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_other_options_is_refused_or_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.training import loop
    from vitdeploy.training.paths import state_path

    output = tmp_path / "v.safetensors"

    def crash(*arguments) -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_finish", crash)
        with pytest.raises(RuntimeError, match="power failure"):
            train("digits", output, arguments=TINY, options=replace(QUICK, save_every_s=0.0))
    assert state_path(output).exists()
    cases: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("digits", {}, {"seed": 5}, "seed=0 and not 5"),
        ("digits", {}, {"epochs": 3, "batch": 32}, f"epochs={QUICK.epochs} and not 3, batch={QUICK.batch} and not 32"),
        ("digits", {}, {"hardware": Hardware(precision="bf16-mixed")}, "hardware.precision='32-true' and not 'bf16-"),
        ("digits", {}, {"augmentation": Augmentation(mixup=0.3)}, "augmentation.mixup=0.0 and not 0.3"),
        ("digits", {"depth": 3}, {}, "arguments={'depth': 1} and not 3"),
        ("digits@1", {}, {}, "other data, another preprocessing"),
    ]
    for data, changes, options, difference in cases:
        with pytest.raises(TrainingError, match=re.escape(f"belongs to a training with {difference}")) as caught:
            train(data, output, arguments={**TINY, **changes}, options=replace(QUICK, **options), resume=True)
        assert str(caught.value).endswith(": train again without resume=True")
    other = replace(QUICK, seed=5)
    notes = Notes()
    train("digits", output, arguments=TINY, options=other, progress=notes)
    assert any("starting anew" in line for line in notes.lines)
    assert not state_path(output).exists()
    assert read_checkpoint(output).manifest.options["seed"] == 5
    assert json.loads(json.dumps(read_checkpoint(output).manifest.options)) == other.key()


def test_resume_without_a_state_starts_from_the_beginning_and_says_so(tmp_path: Path, digits) -> None:
    notes, output = Notes(), tmp_path / "v.safetensors"
    checkpoint = train("digits", output, arguments=TINY, options=QUICK, resume=True, progress=notes)
    assert checkpoint.digest == digits.digest
    state = str(output.with_suffix(".state.pt"))
    assert f"there is no state to resume, {state!r}: the training starts anew" in notes.lines


def test_small_images_are_scaled_to_a_size_that_is_asked_for(tmp_path: Path) -> None:
    checkpoint = train(
        "digits", tmp_path / "v.safetensors", arguments={**TINY, "patch": 16, "image_size": 48}, options=QUICK
    )
    suggested = open_dataset("digits").preprocess
    assert checkpoint.manifest.preprocess == suggested.model_copy(update={"size": (48, 48), "resize": "squash"})


def test_a_given_preprocessing_is_taken_as_it_is(tmp_path: Path) -> None:
    spec = Preprocess(size=(16, 16), channels=1, resize="squash", crop="none", mean=(0.1,), std=(0.9,))
    checkpoint = train("digits", tmp_path / "v.safetensors", arguments=TINY, options=QUICK, preprocess=spec)
    assert checkpoint.manifest.preprocess == spec
    assert checkpoint.manifest.model.arguments["image_size"] == [16, 16]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_damaged_image_is_found_before_the_first_update_in_whichever_split_it_is(tmp_path: Path, split: str) -> None:
    data, output = tmp_path / "data", tmp_path / "model.safetensors"
    for part in ("train", "validation", "test"):
        for label in ("a", "b"):
            (data / part / label).mkdir(parents=True)
            for index in range(2):
                Image.new("L", (8, 8), 60 * index).save(data / part / label / f"{index}.png")
    damaged = data / split / "a" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a/1\.png"):
        train(str(data), output, arguments=TINY, options=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*Not a directory"):
        train("digits", tmp_path / "file" / "model.safetensors", arguments=TINY, options=QUICK)


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory: pytest.TempPathFactory):
    """Weights of a timm model for 7 classes, as timm's own training script writes them."""
    import timm
    import torch

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("timm") / "w.pth.tar"
    torch.save({"state_dict": timm.create_model("test_vit", num_classes=7).state_dict(), "arch": "test_vit"}, path)
    return path


def test_a_model_of_timm_is_trained_further_through_a_checkpoint_of_ours(photos, timm_weights, tmp_path: Path) -> None:
    """Other classes and another image size in one step; export, bench and a second fine-tuning open the result."""
    notes = Notes()
    options = replace(QUICK, epochs=2, batch=18, learning_rate=1e-3, drop_path=0.1, layer_decay=0.7, ema_decay=0.9)
    first = train(
        str(photos), tmp_path / "a.safetensors", model="timm:test_vit", weights=timm_weights,
        arguments={"image_size": 64}, options=options, progress=notes,
    )  # fmt: skip
    spec = first.manifest.model
    assert (spec.family, spec.name, spec.classes) == ("timm", "test_vit", ("blue", "green", "red"))
    assert spec.arguments == {"img_size": 64, "num_classes": 3, "drop_path_rate": 0.1}
    assert first.manifest.preprocess.size == (64, 64)
    assert first.manifest.metrics["test_top1"] > 0.6
    for what in ("timm resized pos_embed from 1×101×64 to 1×17×64", "the head is new, for 3 classes:"):
        assert any(what in line for line in notes.lines)
    once = BenchOptions(rounds=1, iterations=1, warmup=1, block_s=0.01, fill_s=0.0, processes=False)
    report = bench([first], f"{photos}:test", options=once)
    assert report.rows[0].top1 == pytest.approx(first.manifest.metrics["test_top1"])
    exported = export(first, tmp_path / "a.onnx")
    assert all(check.status == "passed" for check in exported.manifest.checks)
    second = train(str(photos), tmp_path / "b.safetensors", model=first, options=replace(options, learning_rate=1e-9))
    np.testing.assert_allclose(second.tensors()["head.weight"], first.tensors()["head.weight"], atol=1e-6)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_a_model_of_timm_further_and_resumes(
    photos, timm_weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """One epoch with layer decay, stopped before its end, at another size and number of classes than the weights."""
    from vitdeploy.training import loop

    found = read_training_recipe(recipe).options
    options = replace(
        found, epochs=2, batch=20, warmup_epochs=1, layer_decay=0.7, hardware=QUICK.hardware, save_every_s=0.0
    )
    settings: dict[str, Any] = {"model": "timm:test_vit", "weights": timm_weights, "arguments": {"image_size": 48}}
    if options.distillation is not None:
        teacher = train(
            str(photos), tmp_path / "t.safetensors", arguments={**TINY, "patch": 16, "image_size": 48}, options=QUICK
        )
        options = replace(options, distillation=replace(options.distillation, teacher=str(teacher.path)))
        small = {"img_size": 48, "embed_dim": 24, "depth": 1, "num_heads": 3}
        settings = {"model": "timm:deit_tiny_distilled_patch16_224", "random_weights": True, "arguments": small}

    def crash(*arguments) -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_finish", crash)
        with pytest.raises(RuntimeError, match="power failure"):
            train(str(photos), tmp_path / "v.safetensors", options=options, **settings)
    notes = Notes()
    resumed = train(str(photos), tmp_path / "v.safetensors", options=options, resume=True, progress=notes, **settings)
    assert any(line.startswith("resuming after epoch 2") for line in notes.lines)
    assert (resumed.manifest.model.family, resumed.manifest.preprocess.size) == ("timm", (48, 48))
    assert resumed.tensors()["head.weight"].shape[0] == 3
    assert all(np.isfinite(value).all() for value in resumed.tensors().values())
    assert resumed.manifest.metrics["epochs"] == 2
