from __future__ import annotations

import errno
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.datasets import open_dataset
from vitdeploy.datasets.digits import pixels_of_ink, read_digits
from vitdeploy.errors import ArtifactError, CalibrationError, DataError, RecipeError, UsageError
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.stages.calibration_sets import (
    CalibrationRecipe,
    check_calibration_set,
    make_calibration_set,
    make_from_recipe,
    read_calibration_recipe,
    show_calibration_set,
)

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "calibration" / "digits"
RECIPES = REPOSITORY / "calibration" / "recipes"


def photos(root: Path, per_class: int = 6) -> Path:
    """Two classes of JPEG files, no two alike."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 256, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.JPG", "JPEG")
    return root


def statuses(path: Path, **options) -> dict[str, str]:
    return {check.name: check.status for check in check_calibration_set(path, **options)}


def reseal(path: Path, change) -> None:
    """Edit a manifest as someone would who knows how digests are taken."""
    manifest = show_calibration_set(path)
    (path / "manifest.json").write_text(change(manifest).sealed().text(), "utf8")


def change_entry(manifest, **update):
    first = manifest.entries[0].model_copy(update=update)
    return manifest.model_copy(update={"entries": (first, *manifest.entries[1:])})


def test_the_committed_digits_set_is_what_its_recipe_makes(tmp_path: Path) -> None:
    made = make_from_recipe(read_calibration_recipe(RECIPES / "digits.yaml"), tmp_path / "digits")
    committed = show_calibration_set(DIGITS)
    assert committed.set_sha256 == made.digest
    for ours, theirs in zip(made.manifest.entries, committed.entries, strict=True):
        assert (ours.path, ours.label, ours.sample_id) == (theirs.path, theirs.label, theirs.sample_id)
        # Pixels, not bytes: another version of Pillow may compress otherwise.
        with Image.open(tmp_path / "digits" / ours.path) as one, Image.open(DIGITS / theirs.path) as other:
            assert one.tobytes() == other.tobytes()


def test_the_committed_digits_set_passes_every_check_and_shares_nothing_with_the_test_split() -> None:
    found = statuses(DIGITS, against="digits:test")
    assert found == dict.fromkeys(found, "passed")
    assert set(found) == {"files", "unlisted files", "sample ids", "labels", "duplicates", "size", "origin", "overlap"}
    assert statuses(DIGITS, against="digits:train")["overlap"] == "failed"


def test_the_committed_digits_set_opens_as_a_dataset_with_the_pixels_of_the_digits() -> None:
    dataset = open_dataset(str(DIGITS))
    assert (len(dataset), dataset.classes, dataset.preprocess) == (128, tuple("0123456789"), DIGITS_PREPROCESS)
    assert "Alpaydin" in dataset.source
    assert dataset.licence == "CC-BY-4.0"
    ink, labels = read_digits()
    known = {pixels.tobytes(): int(label) for pixels, label in zip(pixels_of_ink(ink), labels, strict=True)}
    assert [known[dataset.image(index).tobytes()] for index in range(128)] == dataset.labels.tolist()


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_what_it_is_for(recipe: Path) -> None:
    assert len(read_calibration_recipe(recipe).description) > 20


def test_the_readme_shows_what_was_measured_and_links_what_is_there() -> None:
    text = (REPOSITORY / "calibration" / "README.md").read_text("utf8")
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "calibration_size_digits.json").read_text())
    for row in results["rows"]:
        figures = (statistics.median(row["sqnr_db"]), min(row["sqnr_db"]), max(row["sqnr_db"]))
        assert f"| {row['images']} | " + " | ".join(f"{figure:.1f} dB" for figure in figures) + " |" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (REPOSITORY / "calibration" / link).exists(), link


def test_files_of_an_image_folder_are_copied_byte_for_byte(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    made = make_calibration_set(str(root), tmp_path / "set", samples=6, seed=3)
    for entry in made.manifest.entries:
        assert (tmp_path / "set" / entry.path).read_bytes() == (root / entry.original).read_bytes()
        assert entry.original.startswith(f"{entry.label}/")
    assert [entry.label for entry in made.manifest.entries] == ["cat"] * 3 + ["dog"] * 3
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.digest == made.digest == open_dataset(str(root), split="train", samples=6, seed=3).digest
    assert made.manifest.data == "photos:train"
    assert statuses(tmp_path / "set", against=f"{root}:all")["overlap"] == "failed"
    assert statuses(tmp_path / "set", against=str(root))["overlap"] == "passed"


def test_the_manifest_does_not_tell_where_the_folder_was(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    made = make_calibration_set(f"{root}@1:train", tmp_path / "set", samples=4)
    assert made.manifest.data == "photos@1:train"
    assert str(tmp_path) not in (tmp_path / "set" / "manifest.json").read_text()


def test_an_unlabelled_folder_gives_an_unlabelled_set(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    made = make_calibration_set(str(root / "cat"), tmp_path / "set", samples=3)
    assert {entry.label for entry in made.manifest.entries} == {None}
    assert open_dataset(str(tmp_path / "set")).labels is None
    assert statuses(tmp_path / "set")["labels"] == "unchecked"


def test_without_a_split_the_training_split_is_taken(tmp_path: Path) -> None:
    made = make_calibration_set("digits", tmp_path / "set", samples=20)
    train = set(open_dataset("digits:train").sample_ids)
    assert {entry.sample_id for entry in made.manifest.entries} <= train
    assert made.manifest.data == "digits:train"


def test_making_the_same_set_again_writes_nothing_and_another_set_replaces_it(tmp_path: Path) -> None:
    notes = []

    class Noting:
        def note(self, text) -> None:
            notes.append(text)

        def __getattr__(self, name):
            from vitdeploy.progress import SILENT

            return getattr(SILENT, name)

    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=20, progress=Noting())
    before = (target / "00000.png").stat().st_mtime_ns, target.stat().st_ino
    make_calibration_set("digits", target, samples=20, progress=Noting())
    assert ((target / "00000.png").stat().st_mtime_ns, target.stat().st_ino) == before
    assert notes == [f"{target} already holds this set"]
    make_calibration_set("digits", target, samples=10)
    assert len(open_dataset(str(target))) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_damaged_set_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)
    (target / "00003.png").write_bytes(b"")
    make_calibration_set("digits", target, samples=10)
    assert len(open_dataset(str(target))) == 10


def test_a_kill_while_writing_leaves_no_set_and_a_second_run_completes(tmp_path: Path) -> None:
    target = tmp_path / "set"
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from vitdeploy.datasets.digits import Digits
        from vitdeploy.stages import calibration_sets as calibration
        image, calls = Digits.image, []
        def dying(self, index):
            calls.append(index)
            if len(calls) > 40:
                os.kill(os.getpid(), signal.SIGKILL)
            return image(self, index)
        Digits.image = dying
        calibration.make_calibration_set("digits", Path({str(target)!r}), samples=30)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    assert not target.exists()
    make_calibration_set("digits", target, samples=30)
    assert len(open_dataset(str(target))) == 30


def test_a_full_disk_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"the disk is full: '.*set' was not written, what was there before"):
        make_calibration_set("digits", target, samples=20)
    monkeypatch.undo()
    assert len(open_dataset(str(target))) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def flip(path: Path) -> None:
    data = bytearray((path / "00002.png").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "00002.png").write_bytes(data)


def drop(path: Path) -> None:
    (path / "00002.png").unlink()


def add(path: Path) -> None:
    shutil.copy(path / "00002.png", path / "extra.png")


@pytest.mark.parametrize(
    ("harm", "check", "message"),
    [
        (flip, "files", r"'00002\.png' was changed"),
        (drop, "files", r"'00002\.png' is missing or cannot be read"),
        (add, "unlisted files", r"'extra\.png' is not listed in the manifest"),
    ],
)
def test_a_set_whose_files_are_not_those_of_the_manifest_is_refused(
    tmp_path: Path, harm: Callable[..., Any], check: str, message: str
) -> None:
    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)
    harm(target)
    with pytest.raises(ArtifactError, match=message + r"; make the set again with vd.make_calibration_set"):
        open_dataset(str(target))
    assert statuses(target)[check] == "failed"


def edited(text: str) -> str:
    return text.replace('"label":"0"', '"label":"9"', 1)


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def keyed(text: str) -> str:
    return json.dumps({**json.loads(text), "note": "mine"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited, r"does not match its digest: it was edited or damaged"),
        (truncated, r"is not JSON .*damaged"),
        (keyed, r"is not a calibration set's manifest: note: "),
        (lambda text: "{}", r"is not a calibration set's manifest"),
        (lambda text: "[]", r"is not a calibration set's manifest"),
    ],
)
def test_a_manifest_that_was_edited_or_damaged_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)
    manifest = target / "manifest.json"
    manifest.write_text(change(manifest.read_text("utf8")), "utf8")
    for use in (lambda path: open_dataset(str(path)), show_calibration_set, check_calibration_set):
        with pytest.raises(ArtifactError, match=message) as caught:
            use(target)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: change_entry(m, label="9"), r"the digest of the set is not that of its samples and labels"),
        (lambda m: change_entry(m, label="ten"), r"has the label 'ten', which is not one of its classes"),
        (lambda m: change_entry(m, label=None), r"has the label None, which is not one of its classes"),
        (lambda m: change_entry(m, path="../secret.png"), r"the path '\.\./secret\.png' leads out of the folder"),
        (lambda m: change_entry(m, path="/etc/secret.png"), r"leads out of the folder"),
        (lambda m: change_entry(m, path=m.entries[1].path), r"a path is listed twice"),
        (lambda m: m.model_copy(update={"samples": 11}), r"it says 11 samples and lists 10"),
    ],
)
def test_a_manifest_that_lies_under_a_right_digest_is_refused(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)
    reseal(target, change)
    with pytest.raises(ArtifactError, match=r"contradicts itself: .*" + message):
        open_dataset(str(target))


def test_a_false_sample_id_is_found_by_the_check(tmp_path: Path) -> None:
    from vitdeploy.datasets import content_digest

    target = tmp_path / "set"
    make_calibration_set("digits", target, samples=10)

    def lie(manifest):
        manifest = change_entry(manifest, sample_id="0" * 64)
        ids = [entry.sample_id for entry in manifest.entries]
        digest = content_digest(manifest.classes, ids, np.array(manifest.labels(), np.int64))
        return manifest.model_copy(update={"set_sha256": digest})

    reseal(target, lie)
    assert statuses(target)["sample ids"] == "failed"


def test_copies_of_one_image_are_found(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", per_class=2)
    shutil.copy(root / "cat" / "0.JPG", root / "dog" / "0.JPG")
    make_calibration_set(str(root), tmp_path / "set", samples=4)
    assert statuses(tmp_path / "set")["duplicates"] == "failed"
    assert statuses(tmp_path / "set")["size"] == "unchecked"
    assert statuses(tmp_path / "set")["origin"] == "unchecked"


@pytest.mark.parametrize(
    ("data", "samples", "error", "message"),
    [
        ("digits:test", 10, CalibrationError, r"'digits:test' is a test split, which calibration must not see"),
        ("digits", 0, DataError, r"0 samples were asked for"),
        ("nothing", 5, DataError, r"there is no dataset 'nothing'"),
    ],
)
def test_data_that_cannot_calibrate_is_refused_and_nothing_is_written(
    tmp_path: Path, data: str, samples: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_calibration_set(data, tmp_path / "set", samples=samples)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    (root / "dog" / "2.JPG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"'.*dog/2\.JPG' is not an image"):
        make_calibration_set(str(root), tmp_path / "set", samples=12)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_an_image_that_does_not_fit_the_preprocessing_is_refused_by_name(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    with pytest.raises(DataError, match=r"'cat/0\.JPG': an image of 10×12 pixels does not fit the input of 8×8"):
        make_calibration_set(str(root), tmp_path / "set", samples=12, preprocess=DIGITS_PREPROCESS)
    assert not (tmp_path / "set").exists()


def test_what_is_no_calibration_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"'.*letters' exists and is no calibration set: choose another folder"):
        make_calibration_set("digits", tmp_path / "letters", samples=10)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep me"
    root = photos(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"the output '.*set' lies inside the data"):
        make_calibration_set(str(root), root / "set", samples=4)


def test_what_is_no_calibration_set_is_not_shown_or_checked(tmp_path: Path) -> None:
    for use in (show_calibration_set, check_calibration_set):
        with pytest.raises(ArtifactError, match=r"is not a calibration set .*: make one with vd.make_calibration_set"):
            use(tmp_path)


def test_a_calibration_set_has_no_test_split() -> None:
    with pytest.raises(DataError, match=r"is a calibration set, which has no test split"):
        open_dataset(str(DIGITS), split="test")
    assert len(open_dataset(str(DIGITS), split="train")) == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("samples: 5\nsample: 3\n", r"is not valid: sample: .*; keys are description, data, samples"),
        ("data: digits\n", r"is not valid: samples: Field required"),
        ("samples: -1\n", r"is not valid: samples: "),
        ("samples: [", r"is not YAML"),
        ("", r"is not valid: the whole: "),
    ],
)
def test_a_recipe_that_is_not_valid_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_calibration_recipe(file)
    assert "\n" not in str(caught.value)


def test_a_recipe_takes_its_data_from_the_caller_and_gives_source_and_licence(tmp_path: Path) -> None:
    recipe = CalibrationRecipe(samples=4, source="my camera", licence="CC0-1.0")
    with pytest.raises(UsageError, match=r"the recipe names no data"):
        make_from_recipe(recipe, tmp_path / "set")
    made = make_from_recipe(recipe, tmp_path / "set", data=str(photos(tmp_path / "photos")))
    assert (made.source, made.licence, len(made)) == ("my camera", "CC0-1.0", 4)


def test_the_set_that_was_made_is_the_data_of_the_next_verb(tmp_path: Path) -> None:
    made = make_calibration_set("digits:train", tmp_path / "set", samples=20)
    again = make_calibration_set("digits:train", tmp_path / "set", samples=20)
    assert open_dataset(made) is made
    assert made.sample_ids == again.sample_ids == open_dataset(str(tmp_path / "set")).sample_ids
    assert show_calibration_set(str(tmp_path / "set")) == made.manifest == again.manifest
    assert made.image(0).size == (8, 8)
