from __future__ import annotations

from pathlib import Path

import pytest
from present import present

from vitdeploy.catalog import variant
from vitdeploy.errors import RecipeError
from vitdeploy.training.options import DEFAULTS, Distillation
from vitdeploy.training.recipe import read_training_recipe, recipe_names


@pytest.mark.parametrize("name", ["deit", "deit_distilled", "swin", "t2t"])
def test_published_recipes_name_a_catalogue_model_and_their_source(name: str) -> None:
    recipe = read_training_recipe(name)
    assert variant(present(recipe.model)).top1 is not None
    assert "arXiv" in recipe.about
    assert recipe.options.epochs >= 300
    assert recipe.options.augmentation.mixup == 0.8


def test_the_learning_rate_of_each_recipe_is_5e4_per_512_images() -> None:
    for name in ("deit", "deit_distilled", "swin", "t2t"):
        options = read_training_recipe(name).options
        assert options.learning_rate == pytest.approx(5e-4 * options.batch / 512)


def test_the_package_lists_its_recipes() -> None:
    assert recipe_names() == ("deit", "deit_distilled", "swin", "t2t")


def test_a_recipe_of_ones_own_takes_what_it_does_not_say_from_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: swin\narguments: {depths: [1, 1]}\noptions: {epochs: 3, betas: [0.9, 0.98]}\n"
    )
    recipe = read_training_recipe(tmp_path / "a.yaml")
    assert (recipe.model, recipe.arguments) == ("swin", {"depths": [1, 1]})
    assert (recipe.options.epochs, recipe.options.betas) == (3, (0.9, 0.98))
    assert recipe.options.batch == DEFAULTS.batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("options: {epoch: 3}", "there is no training option 'epoch': did you mean epochs"),
        (
            "options: {augmentation: {mixxup: 1}}",
            "there is no training option 'augmentation.mixxup': did you mean mixup",
        ),
        ("options: {epochs: many}", "training option epochs is 'many': Input should be a valid integer"),
        ("options: {epochs: -3}", "epochs is -3: Input should be greater than or equal to 1"),
        ("options: {hardware: {precision: int8}}", "training option hardware.precision is 'int8'"),
        ("options: 3", "options in .* is 3, expected names and values"),
        ("modle: vit", "has the key 'modle', expected some of about, model, weights, random_weights, argum"),
        ("weights: [a.pth]", r"weights in .* is \['a.pth'\], expected a text"),
        ("random_weights: 3", "random_weights in .* is 3, expected true or false"),
        (
            "teacher: a\noptions: {distillation: {teacher: b}}",
            "teacher is 'a', and options.distillation.teacher is 'b': leave one out",
        ),
        ("- 1", "is no training recipe, expected the keys about, model"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as raised:
        read_training_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(raised.value)


def test_a_recipe_names_weights_and_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: timm:test_vit\nweights: w.pth\nteacher: t.safetensors\n"
        "options: {distillation: {teacher: t.safetensors, kind: soft, arguments: {image_size: 64}}}\n"
    )
    recipe = read_training_recipe(tmp_path / "a.yaml")
    assert (recipe.model, recipe.weights, recipe.random_weights) == ("timm:test_vit", Path("w.pth"), False)
    assert recipe.options.distillation == Distillation("t.safetensors", "soft", arguments={"image_size": 64})
    (tmp_path / "b.yaml").write_text("teacher: t.safetensors\n")
    assert read_training_recipe(tmp_path / "b.yaml").options.distillation == Distillation("t.safetensors")


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(RecipeError, match="there is no training recipe 'diet', expected a YAML file or one of deit"):
        read_training_recipe("diet")
