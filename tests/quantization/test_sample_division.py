from collections import Counter

import numpy as np
import pytest
from present import present

from vitdeploy.datasets import open_dataset
from vitdeploy.datasets.base import DatasetBase, Subset
from vitdeploy.errors import CalibrationError
from vitdeploy.quantization.division import divide


def names(dataset):
    return [] if dataset is None else [dataset.name(index) for index in range(len(dataset))]


def unlabelled(count) -> DatasetBase:
    return DatasetBase("flat", [f"{index}.png" for index in range(count)])


@pytest.mark.parametrize("count", [2, 3, 20, 31, 32, 79, 80, 81, 500, 3000])
@pytest.mark.parametrize("compare", [True, False])
def test_parts_are_disjoint_and_together_the_whole(count: int, compare: bool) -> None:
    parts = divide(unlabelled(count), hold_out=True, compare=compare)
    everything = names(parts.fit) + names(parts.compare) + names(parts.check)
    assert Counter(everything) == Counter(names(unlabelled(count)))
    assert parts.calibrated + len(names(parts.check)) == count
    assert len(parts.fit) >= 1


@pytest.mark.parametrize(("count", "held"), [(2, 1), (20, 10), (32, 16), (79, 16), (100, 20), (500, 100)])
def test_a_fifth_is_held_out_at_least_16_at_most_half(count: int, held: int) -> None:
    assert len(names(divide(unlabelled(count), hold_out=True, compare=True).check)) == held


def test_nothing_is_held_out_where_other_images_check() -> None:
    parts = divide(unlabelled(40), hold_out=False, compare=True)
    assert parts.check is None
    assert parts.calibrated == 40


def test_few_images_are_not_compared_with() -> None:
    assert divide(unlabelled(20), hold_out=True, compare=True).compare is None


def test_comparing_takes_at_most_64_images() -> None:
    assert len(names(divide(unlabelled(3000), hold_out=True, compare=True).compare)) == 64


def test_every_class_is_in_every_part_and_the_seed_decides() -> None:
    digits = open_dataset("digits:train")
    parts = divide(digits, hold_out=True, compare=True, seed=3)
    for part in (parts.fit, parts.compare, parts.check):
        assert part is not None
        counts = np.bincount(present(part.labels), minlength=10)
        assert counts.min() >= 0.5 * counts.mean()
    again = divide(digits, hold_out=True, compare=True, seed=3)
    other = divide(digits, hold_out=True, compare=True, seed=4)
    assert names(again.check) == names(parts.check) != names(other.check)


@pytest.mark.parametrize("count", [0, 1])
def test_a_set_that_leaves_nothing_to_calibrate_with_is_refused(count: int) -> None:
    digits = open_dataset("digits:train")
    with pytest.raises(CalibrationError, match=rf"has {count} image\(s\), expected at least 2"):
        divide(Subset(digits, np.arange(count)), hold_out=True, compare=True)
