from __future__ import annotations

import importlib.machinery
import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
from PIL import Image
from present import present

from vitdeploy.datasets import open_dataset, splits_of
from vitdeploy.errors import DataError


def write_mnist(root: Path, name: str, count: int, seed: int) -> np.ndarray:
    """Write the two files that torchvision reads, with random images of 28×28 and labels 0…9 in turn."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes())
    labels = np.arange(count, dtype=np.uint8) % 10
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())
    return pixels


@pytest.mark.torch
def test_a_torchvision_dataset_opens_through_timm_with_a_validation_split_out_of_train(tmp_path: Path) -> None:
    train_pixels = write_mnist(tmp_path, "train", 50, seed=1)
    test_pixels = write_mnist(tmp_path, "t10k", 20, seed=2)
    uri = f"timm:torch/mnist?root={tmp_path}"
    parts = {split: open_dataset(uri, split=split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 40, "validation": 10, "test": 20}
    assert np.array_equal(np.asarray(parts["test"].image(7)), test_pixels[7])
    assert parts["test"].labels.tolist() == [index % 10 for index in range(20)]
    assert np.bincount(present(parts["validation"].labels)).tolist() == [1] * 10
    assert not set(parts["train"].sample_ids) & set(parts["validation"].sample_ids)
    known = {pixels.tobytes(): index % 10 for index, pixels in enumerate(train_pixels)}
    validation = parts["validation"]
    assert [known[validation.image(index).tobytes()] for index in range(10)] == validation.labels.tolist()
    assert splits_of(uri) == ("train", "test")
    assert len(parts["test"].classes) == 10


@pytest.mark.torch
def test_a_readers_images_are_decoded_here_so_that_none_is_skipped_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    # timm's own ImageDataset answers an unreadable image with the next one, under the same index.
    import timm.data

    def png(shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (shade,) * 3).save(buffer, "PNG")
        return buffer.getvalue()

    class Reader:
        files = (png(10), png(20)[:-30], png(30))
        class_to_idx = MappingProxyType({"dog": 1, "cat": 0})

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            return io.BytesIO(self.files[index]), index % 2

        def __len__(self) -> int:
            return 3

        def iter_targets(self) -> Iterator[int]:
            return iter([0, 1, 0])

    monkeypatch.setattr(
        timm.data, "create_dataset", lambda name, **options: timm.data.ImageDataset("", reader=Reader())
    )
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    sys.modules["datasets"].__spec__ = importlib.machinery.ModuleSpec("datasets", None, origin="here")
    dataset = open_dataset("timm:hfds/someone/photos", split="validation")
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog"), [0, 1, 0])
    assert dataset.image(2).getpixel((0, 0)) == (30, 30, 30)
    with pytest.raises(DataError, match=r"image 'someone/photos/validation/0000001' is truncated or damaged"):
        dataset.image(1)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("timm:torch/mnist?root=nowhere:train", r"timm cannot open 'torch/mnist', split 'train': .*[Dd]ownload"),
        ("timm:torch/mnist:train", r"does not say where its files are: write 'timm:torch/mnist\?root=FOLDER'"),
        ("timm:torch/mnist?root=x", r"has splits and none was named: ask for 'timm:torch/mnist\?root=x:train'"),
        ("timm:torch/mnits?root=x:train", r"timm opens no torchvision dataset 'mnits', expected one of cifar10"),
        ("timm:torch/imagenet?root=x:test", r"has no test split: ask for '.*:validation'"),
        ("timm:torch/mnist?root=x&trust_remote_code=1:train", r"has the unknown option 'trust_remote_code', expected"),
        ("timm:wds/x:train", r"is a stream without random access"),
        ("timm:zip/x:train", r"timm has no kind of dataset 'zip', expected"),
        ("timm:mnist", r"names no dataset of timm, expected 'timm:torch/NAME\?root=FOLDER'"),
        ("timm:hfds/someone/photos:train", r"needs Hugging Face's package datasets, which is not installed"),
    ],
)
def test_what_timm_cannot_open_is_refused_in_one_line(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
