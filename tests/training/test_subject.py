from __future__ import annotations

import pytest
import torch

from vitdeploy.datasets import open_dataset
from vitdeploy.models import model_from_spec
from vitdeploy.training.subject import choose_subject


@pytest.mark.parametrize("family", ["vit", "deit", "swin", "swin_v2", "pvt", "pvt_v2", "t2t", "tnt", "patchconvnet"])
def test_a_family_alone_gives_a_small_model_that_takes_the_digits(family):
    train = open_dataset("digits:train")
    subject = choose_subject(family, {}, train)
    assert subject.note.startswith(f"{family} of small size: ")
    assert subject.preprocess == train.preprocess
    model = model_from_spec(subject.spec).eval()
    assert sum(value.numel() for value in model.parameters()) < 1_000_000
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_arguments_that_give_a_shape_are_taken_as_they_are():
    train = open_dataset("digits:train")
    subject = choose_subject("vit", {"width": 24, "heads": 2, "depth": 1, "patch": 4}, train)
    decided = {"image_size": [8, 8], "channels": 1, "num_classes": 10}
    assert subject.spec.arguments == {"width": 24, "heads": 2, "depth": 1, "patch": 4, **decided}
    assert subject.note == ""


@pytest.mark.parametrize(("family", "width"), [("vit", 64), ("swin", 48)])
def test_a_drop_path_alone_leaves_the_small_model(family, width):
    subject = choose_subject(family, {"drop_path": 0.1}, open_dataset("digits:train"))
    assert (subject.spec.arguments["width"], subject.spec.arguments["drop_path"]) == (width, 0.1)


def test_single_arguments_change_the_small_vit():
    arguments = choose_subject("vit", {"pool": "mean", "heads": 2}, open_dataset("digits:train")).spec.arguments
    assert (arguments["width"], arguments["pool"], arguments["heads"]) == (64, "mean", 2)
