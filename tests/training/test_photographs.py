from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from vitdeploy.errors import UsageError
from vitdeploy.records import Preprocess
from vitdeploy.training.options import Augmentation, TrainOptions
from vitdeploy.training.photographs import photograph_transform
from vitdeploy.training.recipe import read_training_recipe, recipe_names

pytestmark = pytest.mark.slow

POLICIES = (
    "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m0", "rand-m10-mstd101-inc1", "rand-m30-n3-mmax30-mstd5-inc1",
    "rand-m9-n3-tweights-p0.9", "rand-t3a", "rand-t3aw", "augmix-m5-w4-d2", "augmix-m10-b1-mstd2",
    "original", "originalr-mstd0.5", "v0", "v0r-mstd2", "3a", None,
)  # fmt: skip
DRAWS = 20_000


def spec(size: tuple[int, int] = (8, 8), **changes: object) -> Preprocess:
    return Preprocess(**{"size": size, "resize": "squash", "mean": (0.5,) * 3, "std": (0.25,) * 3, **changes})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_become_normalised_tensors(channels: int) -> None:
    record = spec((96, 64), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    tensor = photograph_transform(Augmentation(policy=None, colour_jitter=0, erase=0), record)(
        Image.new("RGB", (120, 100), (255, 255, 255))
    )
    assert tensor.shape == (3, 96, 64)
    torch.testing.assert_close(tensor, torch.full((3, 96, 64), 2.0))


def chains() -> dict[Augmentation, str]:
    """Return the different chains of the default and of the recipes, each with who uses it."""
    chains = {Augmentation(): "default"}
    for name in recipe_names():
        found = read_training_recipe(name).options.augmentation
        chains.setdefault(replace(found, mixup=0.0, cutmix=0.0, kind="auto"), name)
    return chains


@pytest.mark.parametrize("augmentation", [pytest.param(chain, id=name) for chain, name in chains().items()])
def test_twenty_thousand_draws_of_the_default_and_of_every_recipe_are_pictures(augmentation: Augmentation) -> None:
    """The policy alone is drawn so often; the steps around it have no rare values."""
    transform, image = photograph_transform(augmentation, spec()), noise(12, 10)
    policies = [step for step in transform.transforms if isinstance(step, auto_augment.RandAugment)]
    for policy in policies:
        for _ in range(DRAWS):
            assert policy(image).size == (12, 10)
    for _ in range(200):
        assert transform(image).shape == (3, 8, 8)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_takes_every_interpolation(policy: str | None, interpolation: str) -> None:
    transform = photograph_transform(Augmentation(policy=policy), spec((8, 12), interpolation=interpolation))
    image = noise(12, 10)
    for _ in range(120):
        assert transform(image).isfinite().all()


@pytest.mark.parametrize("name", sorted(auto_augment.NAME_TO_OP))
def test_every_operation_takes_every_magnitude(name: str) -> None:
    """Each operation is put in the place of a policy's own, at magnitudes within and beyond those of the scale."""
    image = noise(9, 7)
    for most in (10, 30):
        for magnitude in np.linspace(0, most, 61).tolist():
            transform = photograph_transform(Augmentation(policy="rand-m9"), spec(interpolation="lanczos"))
            (policy,) = [step for step in transform.transforms if isinstance(step, auto_augment.RandAugment)]
            for operation in policy.ops:
                operation.aug_fn, operation.level_fn = _kept(name, operation), auto_augment.LEVEL_TO_ARG[name]
                operation.prob, operation.magnitude, operation.magnitude_max = 1.0, magnitude, most
                operation.hparams["translate_const"] = 100
            assert transform(image).isfinite().all()


def _kept(name, operation):
    """Return the function that vitdeploy leaves in place for an operation of that name."""
    transform = photograph_transform(Augmentation(policy="rand-inc1"), spec())
    (policy,) = [step for step in transform.transforms if isinstance(step, auto_augment.RandAugment)]
    changed = {each.name.removesuffix("Increasing"): each.aug_fn for each in policy.ops}
    plain = name.removesuffix("Increasing").removesuffix("Original")
    return changed.get(plain, auto_augment.NAME_TO_OP[name])


@pytest.mark.parametrize(("bits", "kept"), [(8, 0xFF), (4, 0xF0), (1, 0x80), (0, 0x00), (-2, 0x00)])
def test_posterizing_keeps_the_highest_bits_and_none_is_black(bits: int, kept: int) -> None:
    transform = photograph_transform(Augmentation(policy="rand-inc1"), spec())
    (policy,) = [step for step in transform.transforms if isinstance(step, auto_augment.RandAugment)]
    (posterize,) = [each.aug_fn for each in policy.ops if each.name == "PosterizeIncreasing"]
    image = noise(12, 10)
    assert (np.asarray(posterize(image, bits)) == np.asarray(image) & kept).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (3, 3), (1, 1000), (1000, 1)])
def test_images_of_a_pixel_or_a_line_keep_their_colour(size: tuple[int, int]) -> None:
    """A crop without pixels would be black."""
    augmentation = Augmentation(policy=None, colour_jitter=0.0, erase=0.0, crop_area=(0.0001, 1.0))
    transform = photograph_transform(augmentation, spec())
    for _ in range(50):
        torch.testing.assert_close(transform(Image.new("RGB", size, (255, 255, 255))), torch.full((3, 8, 8), 2.0))


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-foo1", "rand-m9.5", "random", "rand-", "v9", "rand-tother", "augmix-w0", "original-m3"],
)
def test_a_policy_that_timm_does_not_know_is_refused_before_anything_else(policy: str) -> None:
    with pytest.raises(UsageError, match=f"augmentation.policy is '{policy}', expected timm's spelling"):
        TrainOptions(augmentation=Augmentation(policy=policy))


def test_more_draws_than_a_weighted_set_has_are_refused() -> None:
    with pytest.raises(UsageError, match="draws 20 different operations, and its set has 15: lower n"):
        photograph_transform(Augmentation(policy="rand-n20-tweights"), spec())
