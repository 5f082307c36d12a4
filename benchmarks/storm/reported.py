"""Inputs after reports of other projects' users, each with its thread: what broke there must not break here."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.storm.damage import Prepare

ADOPT = "export theirs.onnx --preprocess digits -o new.onnx"
CONVERT = "convert vit --weights theirs.safetensors --argument heads=2 -o new.safetensors"
SHARDS = "convert vit --weights hub --argument heads=2 -o new.safetensors"
LABELS = "export own.safetensors --labels names.txt -o new.onnx"
CALIBRATION = "calibration make photos:train -o made --samples 4"
TRAIN = "train photos --model vit --argument patch=4 --argument image_size=8 --epochs 1 -o x.safetensors"
PREDICTIONS = ("predict own.onnx pictures", "predict own.onnx pictures --csv", "predict own.onnx pictures --json")
UNPRINTABLE = b"\xff\xfe.png"
"""No UTF-8."""
LONG_TEXT = 2 << 20
"""Bytes, more than Pillow takes of a comment in a PNG."""


def reported() -> Iterator[tuple[str, str, Prepare]]:
    """Yield thread with what was reported, command, and what makes the input."""
    for what, change in {
        "onnx/onnx#3991: data above the folder": {"location": "../../../../../../etc/passwd"},
        "onnx/onnx#7686: an absolute path": {"location": "/etc/passwd"},
        "onnx CVE-2026-34445: a key that is an attribute": {"location": "own.zip", "__class__": "x", "basepath": "/"},
        "onnx CVE-2026-34445: a length of 2^62": {"location": "own.zip", "length": str(1 << 62)},
        "onnx CVE-2026-34445: a negative offset": {"location": "own.zip", "offset": "-8"},
    }.items():
        yield what, ADOPT, _external(change)
    yield "microsoft/onnxruntime#4349: an input without a type", ADOPT, _edited(_untyped)
    yield "microsoft/onnxruntime#4585: an operator of no domain", ADOPT, _edited(_of_no_domain)
    yield "microsoft/onnxruntime#24160: an initializer of another shape than stated", ADOPT, _edited(_other_shape)
    yield "ROCm/AMDMIGraphX#701: an initializer without its shape", ADOPT, _edited(_no_shape)
    yield "safetensors/safetensors#401: a name twice", CONVERT, _tensors(_twice)
    yield "ml-explore/mlx#3363: a shape larger than its bytes", CONVERT, _tensors(_larger)
    yield "Comfy-Org/ComfyUI#15602: bytes after the last tensor", CONVERT, _tensors(lambda data: data + bytes(64))
    yield "safetensors/safetensors#414: weights of torch by that name", CONVERT, _renamed
    yield "sgl-project/sglang#32279: a shard is missing", SHARDS, _sharded("gone.safetensors")
    yield "huggingface/huggingface_hub#4725: a tensor that its shard lacks", SHARDS, _sharded("model.safetensors")
    yield "huggingface/huggingface_hub#4725: a shard above the folder", SHARDS, _sharded("../own.safetensors")
    for command in (*PREDICTIONS, "predict own.onnx pictures --parquet new.parquet"):
        yield "pandas-dev/pandas#22610: a file name that is no UTF-8", command, _named("pictures")
        yield "apple/turicreate#641: .DS_Store and ._ files of macOS", command, _of_macos("pictures")
    for command in PREDICTIONS:
        yield "pytorch/vision#138: a truncated image", command, _truncated("pictures/0.png")
        yield "python-pillow/Pillow#8363: a comment larger than Pillow takes", command, _commented("pictures/0.png")
    for command in (CALIBRATION, TRAIN):
        yield "pandas-dev/pandas#22610: a file name that is no UTF-8", command, _named("photos/train/ant")
        yield "apple/turicreate#641: .DS_Store and ._ files of macOS", command, _of_macos("photos/train/ant")
        yield "pytorch/vision#485: a truncated image", command, _truncated("photos/train/ant/0.png")
        yield "python-pillow/Pillow#8363: a comment larger than taken", command, _commented("photos/train/ant/0.png")
        yield "torchvision: a class folder that is no UTF-8", command, _class_folder
    yield (
        "NVIDIA/DIGITS#420: labels of Windows",
        LABELS,
        _labels("\ufeff" + "".join(f"digit {i} \r\n" for i in range(10))),
    )
    yield "triton-inference-server/server#7367: class names of several lines", "export hub -o new.onnx", _of_two_lines
    for command in ("verify own.zip", "predict own.zip photo.png"):
        yield "libarchive/libarchive#2041: an archive as Finder makes it", command, _of_finder
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 9\n"
    for name, command in (("own.onnx", "predict own.onnx photo.png"), ("photo.png", "predict own.onnx photo.png")):
        yield "onnx/models#317: a pointer of Git LFS in place of a file", command, _replaced(name, pointer)
    yield "curie-eng/curie#181: a link in an archive", "verify own.zip", _linked
    yield "appium/appium#22772: names that begin with dots", "verify own.zip", _dotted


def _edited(change: Callable[[Any], None]) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        import onnx

        model = onnx.load(folder / "theirs.onnx")
        change(model)
        (folder / "theirs.onnx").write_bytes(model.SerializeToString())

    return prepare


def _external(entries: dict[str, str]) -> Prepare:
    def change(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in {"offset": "0", "length": "64", **entries}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return _edited(change)


def _untyped(model: Any) -> None:
    model.graph.input[0].ClearField("type")


def _of_no_domain(model: Any) -> None:
    model.graph.node[0].domain = "\x00\x01"


def _other_shape(model: Any) -> None:
    import onnx

    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, [1, 2, 3]))


def _no_shape(model: Any) -> None:
    max(model.graph.initializer, key=lambda one: len(one.raw_data)).ClearField("dims")


def _tensors(change: Callable[[bytes], bytes]) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        (folder / "theirs.safetensors").write_bytes(change((folder / "hub/model.safetensors").read_bytes()))

    return prepare


def _parts(data: bytes) -> tuple[str, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + size].decode(), data[8 + size :]


def _joined(header: str, body: bytes) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + body


def _twice(data: bytes) -> bytes:
    header, body = _parts(data)
    first = next(iter(json.loads(header).items()))
    return _joined(f"{{{json.dumps(first[0])}:{json.dumps(first[1])},{header.strip()[1:]}", body)


def _larger(data: bytes) -> bytes:
    header, body = _parts(data)
    content = json.loads(header)
    name = next(iter(key for key in content if key != "__metadata__"))
    content[name]["shape"] = [1000, 1000]
    return _joined(json.dumps(content), body)


def _renamed(folder: Path, rng: random.Random) -> None:
    (folder / "theirs.pth").rename(folder / "theirs.safetensors")


def _sharded(shard: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        header, _ = _parts((folder / "hub/model.safetensors").read_bytes())
        names = [name for name in json.loads(header) if name != "__metadata__"]
        index = {**dict.fromkeys(names, "model.safetensors"), "blocks.7.norm1.weight": shard}
        (folder / "hub/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    return prepare


def _named(place: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        inside = os.fsencode(folder / place)
        first = os.fsencode(next(path.name for path in sorted((folder / place).glob("*.png"))))
        os.rename(os.path.join(inside, first), os.path.join(inside, UNPRINTABLE))  # noqa: PTH104, PTH118 - bytes

    return prepare


def _of_macos(place: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        (folder / place / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1" + rng.randbytes(64))
        (folder / place / "._0.png").write_bytes(
            b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + rng.randbytes(64)
        )

    return prepare


def _truncated(name: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) - 30])

    return prepare


def _commented(name: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        text = b"Comment\x00\x00" + zlib.compress(b"x" * LONG_TEXT)
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:33] + chunk + data[33:])  # after the signature and IHDR

    return prepare


def _class_folder(folder: Path, rng: random.Random) -> None:
    inside = os.fsencode(folder / "photos/train")
    os.rename(os.path.join(inside, b"ant"), os.path.join(inside, b"\xff\xfe"))  # noqa: PTH104, PTH118 - bytes


def _labels(text: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        (folder / "names.txt").write_bytes(text.encode())

    return prepare


def _of_two_lines(folder: Path, rng: random.Random) -> None:
    path = folder / "hub/config.json"
    names = {str(index): f"first {index}\nsecond\r\u2028third" for index in range(5)}
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "label_names": list(names.values()), "id2label": names})
    )


def _rewritten(path: Path, change: Callable[[zipfile.ZipInfo], None], members: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            change(info)
            after.writestr(info, data)
    path.write_bytes(stream.getvalue())


def _linked(folder: Path, rng: random.Random) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16

    _rewritten(folder / "own.zip", link, {"smuggled": b"/etc/passwd"})


def _of_finder(folder: Path, rng: random.Random) -> None:
    """All in one folder, and beside it what macOS knows of each file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(folder / "own.zip") as before, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as after:
        after.writestr("vit.bundle/", b"")
        after.writestr("vit.bundle/.DS_Store", b"\x00\x00\x00\x01Bud1")
        for name in before.namelist():
            after.writestr(f"vit.bundle/{name}", before.read(name))
            after.writestr(f"__MACOSX/vit.bundle/._{name}", b"\x00\x05\x16\x07" + rng.randbytes(64))
    (folder / "own.zip").write_bytes(stream.getvalue())


def _replaced(name: str, content: bytes) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        (folder / name).write_bytes(content)

    return prepare


def _dotted(folder: Path, rng: random.Random) -> None:
    _rewritten(folder / "own.zip", lambda info: None, {"..notes.txt": b"x", "..\\smuggled": b"x"})
