from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vitdeploy.records import Preprocess
from vitdeploy.training.augment import Mixing, RandomAffine
from vitdeploy.training.options import Augmentation

GREY = Preprocess(size=(8, 8), channels=1, resize="none", mean=(0.3,), std=(0.4,))
STILL: dict[str, Any] = {"rotate_degrees": 0.0, "translate": 0.0, "scale": 0.0}


def ramp(height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)


def test_no_movement_leaves_the_image_as_it_is() -> None:
    affine = RandomAffine(Augmentation(**STILL), GREY)
    torch.testing.assert_close(affine.apply(ramp(), affine.draw(1, 0)), ramp(), atol=1e-4, rtol=0)


def test_a_quarter_turn_of_a_rectangle_keeps_its_proportions() -> None:
    """A turn by 90° maps the centre row of a wide image onto the centre column, pixel by pixel."""
    wide = Preprocess(size=(4, 12), channels=1, resize="none", mean=(0.0,), std=(1.0,))
    affine = RandomAffine(Augmentation(**{**STILL, "rotate_degrees": 90.0}), wide)
    image = torch.zeros(1, 1, 4, 12)
    image[..., 1:3, 4:8] = torch.arange(8.0).view(2, 4) + 1
    cosine, sine, aspect = 0.0, 1.0, 4 / 12
    quarter = torch.tensor([[[cosine, -sine * aspect, 0.0], [sine / aspect, cosine, 0.0]]])
    turned = affine.apply(image, quarter)
    expected = torch.zeros(1, 1, 4, 12)
    expected[..., 0:4, 5:7] = torch.rot90(image[..., 1:3, 4:8], 1, (2, 3))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_what_comes_from_outside_is_black() -> None:
    affine = RandomAffine(Augmentation(**STILL), GREY)
    shifted = affine.apply(torch.full((1, 1, 8, 8), 1.75), torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]))
    assert shifted[..., :4].eq(1.75).all()
    torch.testing.assert_close(shifted[..., 4:], torch.full((1, 1, 8, 4), -0.3 / 0.4))


def test_movements_stay_within_their_limits_and_follow_the_seed() -> None:
    options = Augmentation(rotate_degrees=20.0, translate=0.1, scale=0.2)
    matrices = RandomAffine(options, GREY).draw(2000, 7)
    assert torch.equal(matrices, RandomAffine(options, GREY).draw(2000, 7))
    assert not torch.equal(matrices, RandomAffine(options, GREY).draw(2000, 8))
    size = (matrices[:, 0, 0] ** 2 + matrices[:, 1, 0] ** 2).sqrt()
    turn = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 0.8 <= size.min() < 0.82
    assert 1.18 < size.max() <= 1.2
    assert -20.01 <= turn.min() < -19
    assert 19 < turn.max() <= 20.01
    assert matrices[:, :, 2].abs().max() == pytest.approx(0.2, abs=0.01)


def test_mixup_blends_images_and_labels_in_the_same_proportion() -> None:
    mixing = Mixing(Augmentation(mixup=1.0), classes=2, label_smoothing=0.0)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    before = np.random.get_state()[1].tolist()
    mixed, targets = mixing(images, torch.tensor([0, 1]), seed=3)
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets[:, 1])
    assert images[1].eq(1).all(), "the batch itself is left alone"
    assert np.random.get_state()[1].tolist() == before
    again = mixing(images, torch.tensor([0, 1]), seed=3)
    assert torch.equal(again[0], mixed)
    assert not torch.equal(mixing(images, torch.tensor([0, 1]), seed=4)[0], mixed)


def test_cutmix_pastes_a_rectangle() -> None:
    mixing = Mixing(Augmentation(cutmix=1.0), classes=2, label_smoothing=0.0)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    mixed, targets = mixing(images, torch.tensor([0, 1]), seed=1)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert mixed[0].mean().item() == pytest.approx(targets[0, 1].item(), abs=1e-6)
