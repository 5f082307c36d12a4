from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import torch

from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models import FAMILIES, model_from_spec
from vitdeploy.reading import parse_yaml
from vitdeploy.records import ModelSpec
from vitdeploy.training.small import small_member
from vitdeploy.training.subject import choose_subject


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_alone_gives_a_small_model_that_takes_the_digits(family: str) -> None:
    train = open_dataset("digits:train")
    subject = choose_subject(family, {}, train)
    assert subject.note.startswith(f"{family} of small size: ")
    assert subject.preprocess == train.preprocess
    model = model_from_spec(subject.spec).eval()
    assert sum(value.numel() for value in model.parameters()) < 1_000_000
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_arguments_that_give_a_shape_are_taken_as_they_are() -> None:
    train = open_dataset("digits:train")
    subject = choose_subject("vit", {"width": 24, "heads": 2, "depth": 1, "patch": 4}, train)
    decided = {"image_size": [8, 8], "channels": 1, "num_classes": 10}
    assert subject.spec.arguments == {"width": 24, "heads": 2, "depth": 1, "patch": 4, **decided}
    assert subject.note == ""


@pytest.mark.parametrize(("family", "width"), [("vit", 64), ("swin", 48)])
def test_a_drop_path_alone_leaves_the_small_model(family: str, width: int) -> None:
    subject = choose_subject(family, {"drop_path": 0.1}, open_dataset("digits:train"))
    assert (subject.spec.arguments["width"], subject.spec.arguments["drop_path"]) == (width, 0.1)


def test_single_arguments_change_the_small_vit() -> None:
    arguments = choose_subject("vit", {"pool": "mean", "heads": 2}, open_dataset("digits:train")).spec.arguments
    assert (arguments["width"], arguments["pool"], arguments["heads"]) == (64, "mean", 2)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(
    "size", [(8, 8), (9, 9), (16, 16), (25, 25), (28, 28), (31, 31), (30, 40), (32, 32), (48, 64), (64, 64)]
)
def test_every_family_has_a_small_member_for_every_size_up_to_64(family: str, size: tuple[int, int]) -> None:
    arguments = small_member(family, size)
    model = model_from_spec(
        ModelSpec(family=family, name=family, arguments={**arguments, "image_size": list(size)})
    ).eval()
    assert sum(value.numel() for value in model.parameters()) < 1_000_000
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *size)).shape == (1, 1000)


@pytest.mark.parametrize("family", ["vit", "deit", "pvt", "pvt_v2", "swin", "swin_v2", "t2t", "tnt", "patchconvnet"])
def test_the_small_member_for_digits_is_that_of_the_recipes(family: str) -> None:
    """What benchmarks/families.py measures is what a user gets."""
    text = (resources.files("vitdeploy") / "recipes" / "families" / f"{family}.yaml").read_text("utf8")
    assert small_member(family, (8, 8)) == parse_yaml(text)["train"]["arguments"]


@pytest.mark.parametrize("size", [(61, 61), (33, 64), (37, 37)])
@pytest.mark.parametrize("family", ["vit", "swin", "pvt", "tnt"])
def test_a_size_that_does_not_divide_into_patches_is_refused_with_another(family: str, size: tuple[int, int]) -> None:
    with pytest.raises(
        UsageError, match=rf"images of {size[0]}×{size[1]} do not divide .*: choose another image_size, such"
    ):
        choose_subject(family, {"image_size": list(size)}, open_dataset("digits:train"))


@pytest.mark.parametrize(
    ("family", "size", "name"),
    [
        ("vit", 224, "vit_tiny_patch16_224"),
        ("vit", 384, "vit_tiny_patch16_384"),
        ("vit", 96, "vit_tiny_patch16_224"),
        ("swin", 224, "swin_tiny_patch4_window7_224"),
        ("t2t", 224, "t2t_vit_7"),
    ],
)
def test_a_family_at_a_larger_size_is_its_smallest_variant(family: str, size: int, name: str) -> None:
    subject = choose_subject(family, {"image_size": size}, open_dataset("digits:train"))
    assert (subject.spec.name, subject.spec.arguments["image_size"]) == (name, [size, size])
    assert subject.note.startswith(f"{family} at {size}×{size}: {name}, the smallest of the catalogue (")


@pytest.mark.parametrize("value", ["big", [3], [32, 0], True, 0, -8, 8.5, [8, 8, 8]])
def test_an_image_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"image_size is .*, expected a positive number of pixels or"):
        choose_subject("vit", {"image_size": value}, open_dataset("digits:train"))


def test_what_a_variant_cannot_take_is_refused_where_it_is_built() -> None:
    subject = choose_subject("swin_tiny_patch4_window7_224", {"image_size": 64}, open_dataset("digits:train"))
    with pytest.raises(ModelError, match="windows of 7×7 do not fill a stage of 16×16 tokens"):
        model_from_spec(subject.spec)
