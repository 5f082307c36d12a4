from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.training.options import Augmentation, Distillation, Hardware, TrainOptions, augmentation_kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainOptions(epochs=0), "epochs is 0, expected a whole number of at least 1"),
        (lambda: TrainOptions(batch=True), "batch is True, expected a whole number"),
        (lambda: TrainOptions(patience=0), "patience is 0"),
        (lambda: TrainOptions(learning_rate=0.0), "learning_rate is 0.0, expected more than 0"),
        (lambda: TrainOptions(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: TrainOptions(final_learning_rate=1.0), "final_learning_rate is 1.0, expected 0 to 0.003"),
        (lambda: TrainOptions(weight_decay=-1), "weight_decay is -1, expected at least 0"),
        (lambda: TrainOptions(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: TrainOptions(betas=(0.9, 1.0)), "betas is"),
        (lambda: TrainOptions(layer_decay=1.5), "layer_decay is 1.5"),
        (lambda: TrainOptions(clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: TrainOptions(drop_path=1.0), "drop_path is 1.0"),
        (lambda: TrainOptions(ema_decay=2), "ema_decay is 2"),
        (lambda: TrainOptions(epochs=3, warmup_epochs=3), "warmup_epochs is 3, expected .* less than the 3 epochs"),
        (lambda: TrainOptions(batch=10, accumulate=4), "batch 10 does not divide by accumulate 4"),
        (lambda: TrainOptions(hardware=Hardware(workers=-1)), "workers is -1"),
        (lambda: TrainOptions(hardware=Hardware(threads=0)), "threads is 0"),
        (
            lambda: TrainOptions(augmentation=Augmentation(kind="rand")),  # type: ignore[arg-type]
            "augmentation.kind is 'rand', expected one of",
        ),
        (lambda: TrainOptions(augmentation=Augmentation(flip=2)), "augmentation.flip is 2, expected 0 to 1"),
        (lambda: TrainOptions(augmentation=Augmentation(crop_area=(0.9, 0.1))), r"crop_area is \(0.9, 0.1\)"),
        (lambda: TrainOptions(distillation=Distillation("t", weight=2)), "distillation.weight is 2"),
        (lambda: TrainOptions(distillation=Distillation("t", temperature=0)), "distillation.temperature is 0"),
        (
            lambda: TrainOptions(distillation=Distillation("t", kind="warm")),  # type: ignore[arg-type]
            "distillation.kind is 'warm'",
        ),
    ],
)
def test_an_impossible_option_is_refused_by_name_and_value(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_the_key_holds_what_decides_the_result_and_nothing_else() -> None:
    options = TrainOptions(distillation=Distillation("teacher.safetensors"))
    same = replace(
        options,
        hardware=Hardware(devices=8, num_nodes=2, strategy="ddp", workers=0, threads=3),
        keep_last=True,
        tensorboard=True,
        save_every_s=1.0,
        distillation=Distillation("elsewhere/teacher.safetensors"),
    )
    assert same.key() == options.key()
    assert json.loads(json.dumps(options.key())) == options.key()
    for change in (
        {"epochs": 3},
        {"seed": 1},
        {"freeze": ("blocks.0.*",)},
        {"augmentation": Augmentation(flip=0.1)},
        {"distillation": None},
        {"hardware": Hardware(precision="bf16-mixed")},
    ):
        assert replace(options, **change).key() != options.key()


def test_warmup_is_a_twentieth_of_the_epochs_unless_given() -> None:
    assert TrainOptions(epochs=200).warmup == 10
    assert TrainOptions(epochs=200, warmup_epochs=0).warmup == 0


def test_auto_augmentation_depends_on_the_image_size() -> None:
    assert augmentation_kind(Augmentation(), (8, 8)) == "affine"
    assert augmentation_kind(Augmentation(), (64, 64)) == "affine"
    assert augmentation_kind(Augmentation(), (224, 224)) == "timm"
    assert augmentation_kind(Augmentation(kind="none"), (224, 224)) == "none"
