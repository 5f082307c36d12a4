"""``NAME=VALUE`` and batch ranges."""

from __future__ import annotations

import pytest

from vitdeploy.cli.quantize import parse_equalization
from vitdeploy.cli.train import merged
from vitdeploy.cli.values import parse_counts, parse_pairs, put
from vitdeploy.errors import UsageError
from vitdeploy.sessions import batch_profiles, batch_range
from vitdeploy.training.options import TrainOptions


def test_pairs_are_parsed_as_yaml() -> None:
    assert parse_pairs("--set", ["a=1", "b=x=y", "c=[1, 2]", "d=", "e=1e-3", "f=true"]) == {
        "a": 1,
        "b": "x=y",
        "c": [1, 2],
        "d": None,
        "e": 1e-3,
        "f": True,
    }


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["a"], "--set is 'a', expected NAME=VALUE"),
        (["=1"], "--set is '=1', expected NAME=VALUE"),
        (["a=1", "a=2"], "--set names 'a' twice"),
        (["a=["], r"--set has the value '\[', which is not YAML"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_pairs("--set", pairs)


def test_dots_lead_into_what_is_nested_without_touching_the_original() -> None:
    inner = {"x": 1}
    values = {"a": inner}
    put(values, "a.y", 2)
    assert values == {"a": {"x": 1, "y": 2}}
    assert inner == {"x": 1}


def test_train_options_are_merged() -> None:
    options = merged(TrainOptions(epochs=3), {"augmentation.mixup": 0.8, "distillation.teacher": "t.safetensors"})
    assert options.epochs == 3
    assert options.augmentation.mixup == 0.8
    assert options.distillation is not None
    assert options.distillation.teacher == "t.safetensors"
    with pytest.raises(UsageError, match="there is no training option 'epoch': did you mean epochs"):
        merged(options, {"epoch": 3})


@pytest.mark.parametrize(("text", "batch"), [("1", (1, 1, 1)), ("8", (8, 8, 8)), ("1:8:32", (1, 8, 32))])
def test_a_batch_is_a_number_or_a_range(text: str, batch: tuple[int, int, int]) -> None:
    assert batch_range(text) == batch
    assert batch_profiles(text) == (batch,)


@pytest.mark.parametrize("text", ["", "0", "-1", "1:2", "1:2:3:4", "a", "1::3", "1.5", "٣", "1,", "1 8"])
def test_another_batch_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"batch is .*, expected a number such as 1, or MIN:OPT:MAX"):
        batch_profiles([text])


def test_a_batch_range_ascends() -> None:
    with pytest.raises(UsageError, match="4:2:8, expected MIN <= OPT <= MAX"):
        batch_range("4:2:8")


def test_several_batches_are_profiles_of_one_engine() -> None:
    assert batch_profiles(["1", "8"]) == batch_profiles("1, 8") == batch_profiles([1, 8]) == ((1, 1, 1), (8, 8, 8))
    assert batch_profiles(["1,2:4:8", "16"]) == ((1, 1, 1), (2, 4, 8), (16, 16, 16))
    with pytest.raises(UsageError, match="8:8:8 is given twice: name each profile once"):
        batch_profiles(["1", "8", "8:8:8"])
    with pytest.raises(UsageError, match="there is no batch size"):
        batch_profiles([])


def test_equalization_is_a_word_or_a_number() -> None:
    assert (parse_equalization("auto"), parse_equalization("off"), parse_equalization("0.5")) == ("auto", "off", 0.5)
    with pytest.raises(UsageError, match="--equalization is 'on', expected 'auto', 'off' or a number"):
        parse_equalization("on")


@pytest.mark.parametrize(
    ("texts", "found"), [(None, ()), (["1"], (1,)), (["1,8", "32"], (1, 8, 32)), (["1, 8 ,32"], (1, 8, 32))]
)
def test_counts_are_repeated_or_lists_with_commas(texts: list[str] | None, found: tuple[int, ...]) -> None:
    assert parse_counts("--batch", texts) == found


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "one", "1;8", "", ",", "²"])
def test_what_is_no_count_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="--batch"):
        parse_counts("--batch", [text])
