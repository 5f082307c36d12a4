"""What is given in place of an artifact is called what it is, with the way on; on the command line in its words."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifacts import open_artifact, open_onnx
from vitdeploy.artifacts.bundle import read_bundle
from vitdeploy.artifacts.files import save_tensors
from vitdeploy.artifacts.other_files import not_an_artifact
from vitdeploy.artifacts.report_json import read_report
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, VitdeployError
from vitdeploy.preprocess import open_image
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.verify import verify


def image_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def make_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


POINTER, PAGE = (
    "the pointer that Git LFS leaves in place of a large file",
    "a web page, as a failed download leaves behind",
)


@pytest.mark.parametrize("name", ["vit.onnx", "vit.safetensors", "vit.engine", "vit.bundle.zip", "cat.jpg", "cat.png"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", POINTER),
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", PAGE),
        (b"\n <HTML><body>moved</body></HTML>", PAGE),
    ],
)
def test_what_stands_in_place_of_a_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    read: dict[str, Callable[[Path], object]] = {".jpg": open_image, ".png": open_image, ".zip": read_bundle}
    with pytest.raises(VitdeployError, match=f"{name}' is {said}.*: ('git lfs pull'|download the file again)"):
        read.get(Path(name).suffix, open_artifact)(tmp_path / name)


FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "hub": ({"config.json": b"{}", "model.safetensors": b""}, "is a folder of weights that others made, expected"),
    "trainer": ({"pytorch_model.bin": b""}, "is a folder of weights that others made, expected"),
    "photos": ({"cat/1.JPG": b"", "dog/2.png": b""}, "is a folder of images, expected"),
    "run": ({"run.json": b"{}", "model.onnx": b""}, "is the folder of a run, expected .* name one of its files; "),
    "report": ({"report.json": b"{}"}, r"is the folder of a report, expected .*vd\.inspect\(.*checks its digest"),
    "search": ({"front.json": b"{}"}, "is the folder of a search, expected"),
    "set": ({"manifest.json": b'{"kind": "calibration-set"}'}, "is a calibration set, expected"),
}

FILES: dict[str, tuple[bytes, str]] = {
    "photo.jpg": (image_bytes("JPEG"), r"is an image, expected .*vd\.predict\('ARTIFACT', '.*photo\.jpg'\)"),
    "scan.tiff": (image_bytes("TIFF"), "is an image, expected"),
    "icon.webp": (image_bytes("WEBP"), "is an image, expected"),
    "classes.txt": ("Kätzchen\nHund\n".encode(), "is a text file, expected .* if it names classes"),
    "my.yaml": (b"data: photos\n", r"is a text file, expected .*vd\.run\('.*my\.yaml'\)"),
    "train.py": (b"import torch\n", "is a text file, expected"),
    "package.json": (b'{"name": "x"}', "is a JSON file, expected"),
    "report.json": (b'{"report_sha256": "0"}', "is a report, expected .*checks its digest"),
    "run.json": (b"{}", "is the record of a run, expected"),
    "vit.engine.json": (b'{"manifest_sha256": "0"}', r"is the manifest of an engine, expected .*vit\.engine'"),
    "weights.pth": (pickle.dumps({"w": 1}, protocol=2), "is a file of weights that others made, expected"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes them, expected"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_in_place_of_an_artifact_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    files, words = FOLDERS[name]
    make_folder(tmp_path / name, files)
    readers: list[Callable[[Path], object]] = [open_artifact, open_onnx, *([verify] if name != "run" else [])]
    for read in readers:
        with pytest.raises(ArtifactError, match=words):
            read(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_place_of_an_artifact_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    readers: list[Callable[[Path], object]] = [open_artifact, open_onnx, verify]
    for read in readers:
        with pytest.raises(ArtifactError, match=words):
            read(tmp_path / name)


def test_a_report_is_expected_and_something_else_given(tmp_path: Path) -> None:
    make_folder(
        tmp_path, {"hub/config.json": b"{}", "classes.txt": b"cat\n", "run.json": b"{}", "x.jpg": FILES["photo.jpg"][0]}
    )
    for name, words in (
        ("hub", "is a folder of weights that others made, expected a report"),
        ("classes.txt", "is a text file, expected a report"),
        ("run.json", "is the record of a run, expected a report"),
        ("x.jpg", "is an image, expected a report"),
    ):
        with pytest.raises(ArtifactError, match=words):
            read_report(tmp_path / name)


def test_a_part_of_something_names_the_whole(tmp_path: Path) -> None:
    logits, ranges = tmp_path / "vit.reference.safetensors", tmp_path / "vit.calib.safetensors"
    save_tensors(logits, {"logits": np.zeros(3, np.float32)}, {"vitdeploy.reference": "{}"})
    save_tensors(ranges, {"x:lo": np.zeros(3, np.float32)})
    with pytest.raises(ArtifactError, match="is what PyTorch gave for the test images, expected"):
        open_artifact(logits)
    with pytest.raises(
        ArtifactError, match=r"is a part of a calibration table, expected .*'vit\.calib\.json' beside it"
    ):
        open_artifact(ranges)


def test_what_is_not_known_keeps_the_plain_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    make_folder(tmp_path / "ours", {"vit.onnx": b"", "vit.safetensors": b""})
    assert not_an_artifact(tmp_path / "noise.onnx") is None
    for name in ("empty", "ours"):
        with pytest.raises(ArtifactError, match="is a folder, expected a file"):
            open_artifact(tmp_path / name)
        with pytest.raises(ArtifactError, match=r"is no bundle: it has no manifest\.json"):
            read_bundle(tmp_path / name)
    with pytest.raises(ArtifactError, match="is not an ONNX file, or is damaged"):
        open_artifact(tmp_path / "noise.onnx")


def test_inspect_says_so_too(tmp_path: Path) -> None:
    make_folder(tmp_path, {"photos/cat/1.jpg": b"", "x.png": image_bytes("PNG"), "labels.csv": b"0,cat\n"})
    for name, words in (("photos", "a folder of images"), ("x.png", "an image"), ("labels.csv", "a text file")):
        with pytest.raises(ArtifactError, match=words):
            inspect(tmp_path / name)


def test_the_command_line_gives_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "my-vit", {"config.json": json.dumps({"model_type": "vit"}).encode()})
    for command in ("bench my-vit", "build my-vit -o x.engine", "predict my-vit x.png", "verify my-vit"):
        assert main(command.split()) == 1
        said = capsys.readouterr().err
        assert "'vitdeploy export my-vit -o my-vit.onnx' makes a graph of it" in said, command
        assert "'vitdeploy bench my-vit.onnx --baseline my-vit'" in said, command


@pytest.mark.torch
def test_of_weights_that_do_not_name_their_model_inspect_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"blocks.0.norm1.weight": torch.ones(8)}}, "best.pth")
    assert main(["predict", "best.pth", "x.png"]) == 1
    assert "'vitdeploy inspect best.pth' says of which model they are" in capsys.readouterr().err
