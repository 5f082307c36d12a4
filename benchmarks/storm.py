"""A storm of damaged and hostile inputs over all commands: none may crash, hang, write, execute or inject anything.

    python benchmarks/storm.py [--seed 0] [--rounds 1] [--kills 20] [--only KIND] [--sample N] [--jobs 2]

Every case is one command in a process and a folder of its own, with 60 seconds of processor time and 2 GB. It is a
finding if it prints a traceback or an "unexpected" error, is ended by a limit or a signal, prints a control character,
leaves anything changed where it failed, changes an input where it did not, runs what a file smuggles in, or lets a name
of a file reach a page as markup. A command that writes is also killed: at moments spread over the time that it takes,
and, where an earlier output lies in its place, before each of its operations on files. It is a finding if an input is
changed, if what lies in the output's place is neither the earlier one nor a whole one, or if the same command does not
do its work after that, and make what it makes undisturbed. Figures go to ``benchmarks/results/storm.json``; findings
are printed, and make the exit code 1.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SECONDS, PATIENCE, MEMORY = 60, 240, 2 << 30
"""Seconds of processor time; seconds at all, as the machine may be busy; bytes."""
OPERATIONS = 20
"""Most operations on files of a command before which it is killed: spread over all, the last ones among them."""
TEMPORARY = (".vitdeploy-", ".tmp")
"""How the names of unfinished files begin, ours and those of safetensors; a killed process leaves them behind."""
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
"""Flags of Linux's unshare(2) and mount(2)."""
RESULTS = Path(__file__).parent / "results" / "storm.json"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
SMUGGLED = "smuggled"
"""The file that code within an input would write."""

Prepare = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Case:
    """One command on one damaged input; ``prepare`` damages a copy of the sound inputs that lies in its folder.

    limit: Bytes that a file may have, as on a full disk; None for no limit.
    read_only: Whether the folder is on a disk that takes no writing, a mount of its own.
    kill: When the process is killed, to be run again: a share of the processor time that it takes; None for no kill.
    operation: The number of the operation on files before which it is killed, to be run again; None for no kill.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    prepare: Prepare = lambda folder, rng: None
    limit: int | None = None
    read_only: bool = False
    kill: float | None = None
    operation: int | None = None

    @property
    def is_killed(self) -> bool:
        return self.kill is not None or self.operation is not None


@dataclass
class Outcome:
    """What a case did; ``findings`` are what it must not do."""

    case: Case
    code: int | None = None
    seconds: float = 0.0
    memory: int = 0
    killed: bool = False
    left: int = 0
    findings: list[str] = field(default_factory=list)


# What is damaged: file → commands that read it.
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "own.safetensors": (
        ("inspect", "own.safetensors"),
        ("verify", "own.safetensors"),
        ("export", "own.safetensors", "-o", "new.onnx"),
        ("convert", "own.safetensors", "-o", "new.safetensors"),
        ("predict", "own.safetensors", "photo.png"),
    ),
    "own.onnx": (
        ("inspect", "own.onnx"),
        ("verify", "own.onnx"),
        ("predict", "own.onnx", "photo.png"),
        ("quantize", "own.onnx", "--precision", "fp16", "-o", "new.onnx"),
        ("package", "own.onnx", "-o", "new.zip"),
    ),
    "own.reference.safetensors": (("verify", "own.onnx", "--data", "digits:test"), ("inspect", "own.onnx")),
    "table.calib.json": (
        ("inspect", "table.calib.json"),
        ("quantize", "own.onnx", "--precision", "int8", "--calibration", "table.calib.json", "-o", "new.onnx"),
    ),
    "table.calib.safetensors": (
        ("verify", "table.calib.json"),
        ("quantize", "own.onnx", "--precision", "int8", "--calibration", "table.calib.json", "-o", "new.onnx"),
    ),
    "set/manifest.json": (("calibration", "show", "set"), ("calibration", "check", "set")),
    "report/report.json": (("compare", "report", "report"), ("inspect", "report/report.json")),
    "own.zip": (("inspect", "own.zip"), ("verify", "own.zip"), ("predict", "own.zip", "photo.png")),
    "theirs.pth": (
        ("convert", "vit", "--weights", "theirs.pth", "--argument", "heads=2", "-o", "new.safetensors"),
        ("export", "theirs.pth", "-o", "new.onnx"),
    ),
    "theirs.npz": (
        ("convert", "vit", "--weights", "theirs.npz", "--argument", "heads=2", "-o", "new.safetensors"),
        ("inspect", "theirs.npz"),
    ),
    "hub/config.json": (("convert", "hf:./hub", "-o", "new.safetensors"), ("export", "hub", "-o", "new.onnx")),
    "hub/model.safetensors": (("convert", "hf:./hub", "-o", "new.safetensors"),),
    "hub/preprocessor_config.json": (("export", "hub", "-o", "new.onnx"),),
    "theirs.onnx": (("export", "theirs.onnx", "--preprocess", "digits", "-o", "new.onnx"), ("inspect", "theirs.onnx")),
    "recipe.yaml": (
        ("run", "recipe.yaml", "-o", "new"),
        ("train", "digits", "--recipe", "recipe.yaml", "-o", "x.safetensors"),
    ),
    "names.txt": (("export", "own.safetensors", "--labels", "names.txt", "-o", "new.onnx"),),
    "preprocess.json": (("export", "theirs.onnx", "--preprocess", "preprocess.json", "-o", "new.onnx"),),
    "plan.yaml": (("quantize", "own.onnx", "--precision", "fp16", "--plan", "plan.yaml", "-o", "new.onnx"),),
    "photo.png": (("predict", "own.onnx", "photo.png"),),
    "photos/train/ant/0.png": (("calibration", "make", "photos:train", "-o", "made", "--samples", "4"),),
}
BENCH = ("bench", "own.onnx", "--data", "digits:test", "--iterations", "2", "--no-processes", "--report", "new")
INT8 = ("quantize", "own.onnx", "--precision", "int8", "--calibration", "table.calib.json", "-o", "new.onnx")
FP16 = ("quantize", "own.onnx", "--precision", "fp16", "-o", "new.onnx")
EXPORT = ("export", "own.safetensors", "-o", "new.onnx")
WRITERS: dict[tuple[str, ...], tuple[str, ...] | None] = {
    ("convert", "own.safetensors", "-o", "new.safetensors"): (
        "convert", "vit", "--weights", "theirs.pth", "--argument", "heads=2", "-o", "new.safetensors",
    ),
    (*EXPORT, "--reference", "digits:test"): EXPORT,
    ("export", "theirs.onnx", "--preprocess", "digits", "-o", "new.onnx"): (*EXPORT, "--reference", "digits:test"),
    FP16: INT8,
    INT8: FP16,
    ("calibration", "make", "digits:train", "-o", "made", "--samples", "40"): (
        "calibration", "make", "digits:train", "-o", "made", "--samples", "30",
    ),
    ("calibration", "observe", "own.onnx", "digits:train", "--samples", "40", "-o", "new.calib.json"): (
        "calibration", "observe", "own.onnx", "digits:train", "--samples", "30", "-o", "new.calib.json",
    ),
    ("package", "own.onnx", "-o", "new.zip"): ("package", "own.onnx", "--licence", "MIT", "-o", "new.zip"),
    ("package", "own.onnx", "-o", "made"): ("package", "own.onnx", "--licence", "MIT", "-o", "made"),
    (*BENCH, "--samples", "20"): (*BENCH, "--samples", "10"),
    ("predict", "own.onnx", "pictures", "--csv"): None,
    ("predict", "own.onnx", "pictures", "--parquet", "new.parquet"): (
        "predict", "own.onnx", "pictures", "--top", "1", "--parquet", "new.parquet",
    ),
    ("train", "digits", "--epochs", "1", "-o", "new.safetensors"): (
        "train", "digits", "--epochs", "1", "--seed", "1", "-o", "new.safetensors",
    ),
    ("run", "recipe.yaml", "-o", "new"): None,
}  # fmt: skip
"""Commands that write, and such as write something else under the same name."""
BUILD = ("build", "own.onnx", "--backend", "tensorrt-rtx", "--compute-capability", "8.9", "-o", "new.engine")


def writers() -> dict[tuple[str, ...], tuple[str, ...] | None]:
    """Return the commands that write, ``build`` among them where this machine can."""
    from vitdeploy.backends import get_backend

    if get_backend("tensorrt-rtx").unavailable() is not None:
        return WRITERS
    return {**WRITERS, BUILD: (*BUILD, "--profiling", "none")}


def sound_inputs(folder: Path) -> None:
    """Write one sound input of each kind."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from vitdeploy.cli import main
    from vitdeploy.models import create_model

    def call(*command: str) -> None:
        if main(list(command)) != 0:
            raise SystemExit(f"a sound input cannot be made: vitdeploy {' '.join(command)}")

    os.chdir(folder)
    size = {"image_size": 8, "patch": 2, "channels": 1, "width": 32, "depth": 1, "heads": 2}
    settings = [text for name, value in size.items() for text in ("--argument", f"{name}={value}")]
    call("train", "digits", "--model", "vit", *settings, "--epochs", "1", "-o", "own.safetensors")
    call("export", "own.safetensors", "-o", "own.onnx", "--reference", "digits:test")
    call("calibration", "observe", "own.onnx", "digits:train", "--samples", "32", "-o", "table.calib.json")
    call("calibration", "make", "digits:train", "-o", "set", "--samples", "4")
    call("bench", "own.onnx", "--data", "digits:test", "--samples", "20", "--iterations", "2", "--report", "report")
    call("package", "own.onnx", "-o", "own.zip")
    torch.manual_seed(0)
    theirs = create_model(
        "vit", **{**size, "image_size": 32, "patch": 16, "channels": 3, "num_classes": 5}
    ).state_dict()
    torch.save({"state_dict": theirs, "epoch": 3}, "theirs.pth")
    np.savez("theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    Path("hub").mkdir()
    save_file(theirs, "hub/model.safetensors")
    arguments = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": PICTURES,
    }
    Path("hub/config.json").write_text(json.dumps(config))
    Path("hub/preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}, "resample": 2}')
    shutil.copy("own.onnx", "theirs.onnx")
    _without_manifest(Path("theirs.onnx"))
    Path("recipe.yaml").write_text(RECIPE)
    Path("names.txt").write_text("\n".join(f"digit {index}" for index in range(10)))
    Path("preprocess.json").write_text('{"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.5]}')
    Path("plan.yaml").write_text("remainder: fp16\n")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save("photo.png")
    Path("pictures").mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(f"pictures/{index}.png")
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            Path(f"photos/{split}/{name}").mkdir(parents=True)
            for index in range(3):
                Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(f"photos/{split}/{name}/{index}.png")


def _without_manifest(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def flipped(name: str) -> Prepare:
    """Flip one to eight bits."""

    def prepare(folder: Path, rng: random.Random) -> None:
        data = bytearray((folder / name).read_bytes())
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(data)

    return prepare


def cut(name: str) -> Prepare:
    """Cut the end off."""

    def prepare(folder: Path, rng: random.Random) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: rng.randrange(len(data))])

    return prepare


def scrambled(name: str) -> Prepare:
    """Overwrite a stretch near the beginning, where headers are, by noise, zeros or digits."""

    def prepare(folder: Path, rng: random.Random) -> None:
        data = bytearray((folder / name).read_bytes())
        start = rng.randrange(min(len(data), 400))
        length = rng.choice((1, 4, 8, 40))
        data[start : start + length] = rng.choice((rng.randbytes(length), bytes(length), b"9" * length))
        (folder / name).write_bytes(data)

    return prepare


def replaced(name: str, content: bytes | str) -> Prepare:
    """Put other content in the file's place."""

    def prepare(folder: Path, rng: random.Random) -> None:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return prepare


def instead(name: str, make: Callable[[Path], None]) -> Prepare:
    """Put something that is no regular file in its place."""

    def prepare(folder: Path, rng: random.Random) -> None:
        (folder / name).unlink()
        make(folder / name)

    return prepare


def _zip(members: dict[str, bytes], compress: bool = True) -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {SMUGGLED}",)


def _deep(text: str, times: int = 100_000) -> str:
    return text * times


def _header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _npy(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)


def _png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(min(width, 1 << 20) + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _long_image(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
RECIPE = """\
data: digits
train:
  options:
    epochs: 1
bench:
  options:
    rounds: 1
    iterations: 2
    samples: 50
    processes: false
"""
HUGE = 1 << 62
PICTURES = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}


def made_by_hand() -> Iterator[tuple[str, str, str, Prepare]]:
    """Yield kind, name, file and preparation of inputs that no flip of bits would find."""
    json_files = ("table.calib.json", "set/manifest.json", "report/report.json", "hub/config.json", "preprocess.json",
                  "hub/preprocessor_config.json", "names.txt")  # fmt: skip
    yaml_files = ("recipe.yaml", "plan.yaml")
    texts = {
        "deep lists": _deep("["),
        "deep objects": _deep('{"a":'),
        "an infinity": '{"size": Infinity, "mean": NaN, "id2label": -Infinity}',
        "a long number": '{"size": ' + "9" * 6000 + "}",
        "a list": "[1, 2]",
        "a number": "3",
        "null": "null",
        "nothing": "",
        "no text": b"\xff\xfe\xfa\x00",
        "NUL": '{"path": "a\\u0000b", "a\\u0000": 1}',
        "lone surrogates": '{"\\ud800": "\\udfff"}',
        "hostile keys": json.dumps({HOSTILE: HOSTILE}),
    }
    for name in (*json_files, *yaml_files):
        for what, text in texts.items():
            yield "text", f"{what} in {name}", name, replaced(name, text)
    for name in yaml_files:
        yield "text", f"alias bomb in {name}", name, replaced(name, BOMB)
        yield "text", f"anchor cycle in {name}", name, replaced(name, "a: &a\n  b: *a\n")
        yield "text", f"code in {name}", name, replaced(name, f"!!python/object/apply:os.system ['touch {SMUGGLED}']")
        yield "text", f"infinity in {name}", name, replaced(name, "train:\n  options:\n    epochs: .inf\n")
    tensors = ("own.safetensors", "own.reference.safetensors", "table.calib.safetensors", "hub/model.safetensors")
    headers: dict[str, bytes] = {
        "a header of 2^62": struct.pack("<Q", HUGE) + b"{}",
        "a tensor of 2^62": _header({"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, HUGE * 4]}}),
        "a shape of 2^31 × 2^31": _header(
            {"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "negative sizes": _header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
        "a deep header": _header(b'{"a":' * 50_000),
        "an empty header": _header({}),
        "a hostile name": _header({HOSTILE: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "no bytes": b"",
        "a pickle": pickle.dumps(_Code()),
    }
    for name in tensors:
        for what, data in headers.items():
            yield "tensors", f"{what} in {name}", name, replaced(name, data)
    for what, data in {
        "code": pickle.dumps(_Code()),
        "code in an archive": _zip(
            {"archive/data.pkl": pickle.dumps(_Code()), "archive/version": b"3"}, compress=False
        ),
        "a zip bomb": _zip({"archive/data.pkl": bytes(300 << 20), "archive/version": b"3"}),
        "deep tuples": b"\x80\x04" + b"(" * 100_000 + b".",
        "a number of 2^62 bytes": b"\x80\x04\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x.",
        "a string that is not there": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x.",
        "a memo of 2^31": b"\x80\x04Nr" + struct.pack("<I", 0xFFFFFFFF) + b".",
        "no bytes": b"",
        "text": b"hello",
    }.items():
        yield "pickles", f"{what} in theirs.pth", "theirs.pth", replaced("theirs.pth", data)
    for what, data in {
        "a shape of 2^62": _zip({"a.npy": _npy(f"({HUGE},)")}),
        "a zip bomb": _zip({"a.npy": _npy("(75000000,)") + bytes(300_000_000)}),
        "objects": _zip({"a.npy": _npy("(1,)", "|O") + pickle.dumps(_Code())}),
        "a deep header": _zip({"a.npy": _npy("(" * 5000)}),
        "a negative shape": _zip({"a.npy": _npy("(-1,)")}),
    }.items():
        yield "pickles", f"{what} in theirs.npz", "theirs.npz", replaced("theirs.npz", data)
    for what, data in {
        "a path": _zip({"../../smuggled": b"x"}),
        "an absolute path": _zip({"/tmp/smuggled": b"x"}),
        "a bomb": _zip({"bundle.json": bytes(400 << 20)}),
        "many files": _zip({f"{index}": b"" for index in range(5000)}),
        "two names that differ in case": _zip({"x": b"", "X": b"", "manifest.json": b'{"kind": "bundle"}'}),
        "a long name": _zip({"x" * 300: b"", "manifest.json": b'{"kind": "bundle"}'}),
        "hostile names": _zip({HOSTILE.replace("/", ""): b"x", "bundle.json": b"{}"}),
    }.items():
        yield "bundles", f"{what} in own.zip", "own.zip", replaced("own.zip", data)
    for what, data in {
        "50000×50000 pixels": _png(50_000, 50_000),
        "2^31 − 1 pixels": _png((1 << 31) - 1, 1),
        "10000×1 pixels": _long_image(10_000, 1),
        "1×10000 pixels": _long_image(1, 10_000),
        "no pixels": b"",
        "text": b"hello",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    }.items():
        for name in ("photo.png", "photos/train/ant/0.png"):
            yield "images", f"{what} in {name}", name, replaced(name, data)
    for what, body in _graphs().items():
        yield "graphs", f"{what} in theirs.onnx", "theirs.onnx", _graph(body)
    for name in READERS:
        if "/" in name and not name.endswith(("config.json", "report.json", "manifest.json")):
            continue
        yield "no file", f"a FIFO for {name}", name, instead(name, os.mkfifo)
        yield "no file", f"a loop of links for {name}", name, instead(name, lambda path: path.symlink_to(path.name))
        yield "no file", f"a device for {name}", name, instead(name, lambda path: path.symlink_to("/dev/zero"))
        yield "no file", f"a folder for {name}", name, instead(name, Path.mkdir)
        yield "no file", f"nothing for {name}", name, lambda folder, rng, name=name: (folder / name).unlink()


def _graphs() -> dict[str, str]:
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[n,1,8,8] input) => (float[n,64] logits) '
    flat = "logits = Flatten(input)"
    body = (
        "<body = b (int64 i, bool on, float[n,1,8,8] x) => (bool more, float[n,1,8,8] y) "
        "{ more = Identity(on) y = Relu(x) }>"
    )
    return {
        "an endless loop": f"{head}{{ m = Constant<value = int64 {{{HUGE}}}>() on = Constant<value = bool {{1}}>() "
        f"z = Loop {body} (m, on, input) logits = Flatten(z) }}",
        "a tensor of 2^62": f"{head}{{ s = Constant<value_ints = [{HUGE}]>() big = ConstantOfShape(s) {flat} }}",
        "a computed size": f"{head}{{ s = Constant<value_ints = [65536]>() p = Mul(s, s) big = ConstantOfShape(p) "
        f"c = ReduceMax<keepdims = 0>(big) z = Add(input, c) logits = Flatten(z) }}",
        "a product of vectors": f"{head}{{ p = MaxPool<kernel_shape = [1, 1], pads = [0, 0, 0, 90000]>(input) "
        f"q = Transpose<perm = [0, 1, 3, 2]>(p) b = MatMul(q, p) c = ReduceMax<keepdims = 0>(b) "
        f"z = Add(input, c) logits = Flatten(z) }}",
        "an unknown operator": f"{head}{{ z = Nonsense(input) logits = Flatten(z) }}",
        "a division by 0": f"{head}{{ c = Constant<value = float {{0.0}}>() z = Div(input, c) logits = Flatten(z) }}",
        "no output that is made": f"{head}{{ z = Relu(input) }}",
        "a cycle": f"{head}{{ a = Add(input, b) b = Relu(a) logits = Flatten(b) }}",
    }


def _graph(text: str) -> Prepare:
    def prepare(folder: Path, rng: random.Random) -> None:
        import onnx

        (folder / "theirs.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())

    return prepare


def _outside(folder: Path, rng: random.Random) -> None:
    import onnx

    model = onnx.load(folder / "theirs.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())


def _hostile_classes(folder: Path, rng: random.Random) -> None:
    (folder / "names.txt").write_text("\n".join(f"{HOSTILE}{index}" for index in range(10)))


def all_cases(rounds: int, kills: int, undisturbed: Mapping[tuple[str, ...], Undisturbed]) -> Iterator[Case]:
    """Yield every case of the storm; the moments of ``kills`` are spread over the time of each command."""
    for name, commands in READERS.items():
        for command in commands:
            for damage in (flipped, cut, scrambled):
                for turn in range(rounds):
                    yield Case(damage.__name__, f"{name} {turn}", command, damage(name))
    for kind, name, file, prepare in made_by_hand():
        for command in READERS[file][:2]:
            yield Case(kind, name, command, prepare)
    for name, commands in READERS.items():
        for other in READERS:
            if other != name and "/" not in other:
                command = tuple(other if part == name else part for part in commands[0])
                if command != commands[0]:
                    yield Case("another kind", f"{other} for {name}", command)
    for target in (
        "/dev/null",
        "own.onnx",
        "set",
        "nowhere/new.onnx",
        "new.pth",
        "a\x1bb.onnx",
        ".onnx",
        "/proc/new.onnx",
    ):
        yield Case("outputs", f"to {target!r}", ("export", "own.safetensors", "-o", target))
        yield Case("outputs", f"to {target!r}", ("quantize", "own.onnx", "--precision", "fp16", "-o", target))
    yield Case("graphs", "external data elsewhere", READERS["theirs.onnx"][0], _outside)
    page = ("export", "own.safetensors", "--labels", "names.txt", "-o", "new.onnx")
    yield Case("names", "hostile classes", page, _hostile_classes)
    for command, known in undisturbed.items():
        for limit in (0, 4096, 60_000):
            yield Case("full disk", f"{limit} bytes", command, limit=limit)
        if known.made:  # what prints alone needs no disk
            yield Case("read-only disk", "a mount", command, read_only=True)
        moments = kills if command[0] != "run" else kills // 4  # it calls the others, and takes as long as all of them
        for turn in range(moments):
            share = (turn + 0.5) / moments
            yield Case("killed", f"at {100 * share:.3g} % of its time", command, kill=share)
        count = min(known.operations, OPERATIONS) if known.previous is not None and kills else 0
        for turn in range(count):
            number = known.operations - turn * known.operations // count
            yield Case("killed over an earlier output", f"before operation {number}", command, operation=number)


def snapshot(folder: Path) -> dict[str, str]:
    """Return path → what is there, by content."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


@dataclass(frozen=True)
class Undisturbed:
    """What a command that writes does where nothing stands in its way.

    seconds: The processor time that it takes.
    made: Name of each file that it writes → its digest.
    previous: A folder with the inputs and what another command has written under the same name; None for none.
    left: Names that the other command has written.
    """

    seconds: float
    operations: int
    made: Mapping[str, str]
    previous: Path | None
    left: frozenset[str]


@dataclass
class Running:
    """A case whose process runs."""

    outcome: Outcome
    folder: Path
    before: dict[str, str]
    pid: int
    started: float


class Storm:
    """Runs cases, a few at a time, in forked processes."""

    def __init__(
        self, inputs: Path, work: Path, seed: int, jobs: int, undisturbed: Mapping[tuple[str, ...], Undisturbed]
    ) -> None:
        self.inputs, self.work, self.seed, self.jobs = inputs, work, seed, jobs
        self.undisturbed = undisturbed
        self.running: list[Running] = []
        self.outcomes: list[Outcome] = []

    def run(self, cases: list[Case]) -> list[Outcome]:
        for index, case in enumerate(cases):
            while len(self.running) >= self.jobs:
                self.poll()
            self.start(case, index)
            if index % 100 == 99:
                print(f"{index + 1} of {len(cases)}", file=sys.stderr)
        while self.running:
            self.poll()
        return self.outcomes

    def start(self, case: Case, index: int) -> None:
        folder = self.work / f"case-{index}"
        before = self.inputs
        if case.operation is not None:
            before = self.undisturbed[case.command].previous or before
        shutil.copytree(before, folder / "w", symlinks=True)
        case.prepare(folder / "w", random.Random(f"{self.seed} {index}"))
        found = snapshot(folder / "w")
        if case.operation is not None:
            found = {name: found[name] for name in snapshot(self.inputs)}
        kill_s = None if case.kill is None else case.kill * self.undisturbed[case.command].seconds
        self.running.append(Running(Outcome(case), folder, found, fork(case, folder, kill_s=kill_s), time.monotonic()))

    def poll(self) -> None:
        for one in list(self.running):
            outcome, case = one.outcome, one.outcome.case
            pid, status = os.waitpid(one.pid, os.WNOHANG)
            outcome.seconds = time.monotonic() - one.started
            if not pid:
                outcome.memory = max(outcome.memory, _memory(one.pid))
                if _cpu_seconds(one.pid) > SECONDS or outcome.seconds > PATIENCE:
                    outcome.findings.append(f"took more than {SECONDS} s")
                    self.kill(one)
                elif outcome.memory > MEMORY:
                    outcome.findings.append(f"took more than {MEMORY >> 30} GB")
                    self.kill(one)
                else:
                    continue
            else:
                outcome.code = os.waitstatus_to_exitcode(status)
                if case.is_killed and outcome.code in (-signal.SIGKILL, -signal.SIGPROF):
                    with suppress(ProcessLookupError):
                        os.killpg(one.pid, signal.SIGKILL)  # what it has started
                    self.again(one)
            self.running.remove(one)
            judge(one, self.undisturbed.get(case.command))
            self.outcomes.append(outcome)
            if outcome.findings:
                print(f"{case.kind}: {case.name}: vitdeploy {' '.join(case.command)!r}")
                print("".join(f"    {finding!r}\n" for finding in outcome.findings), end="", flush=True)
            else:
                shutil.rmtree(one.folder, ignore_errors=True)
        time.sleep(0.005)

    def kill(self, one: Running) -> None:
        os.killpg(one.pid, signal.SIGKILL)
        os.waitpid(one.pid, 0)

    def again(self, one: Running) -> None:
        """Look at what a killed command has left, and let it run once more: nothing stands in the way."""
        outcome, case = one.outcome, one.outcome.case
        outcome.killed = True
        outcome.findings.extend(what_is_broken(case, one.folder))
        one.pid = fork(replace(case, kill=None, operation=None), one.folder)
        outcome.code = os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1])


def fork(case: Case, folder: Path, count: bool = False, kill_s: float | None = None) -> int:
    """Return the number of a new process that runs a case's command in ``folder / 'w'``, its output beside that.

    After ``kill_s`` seconds of its processor time the system ends it by SIGPROF: nothing handles that, so it is as if
    it were killed by SIGKILL, and comes at its time however busy the machine is.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        if case.read_only:
            mount_read_only(folder / "w")
        os.chdir(folder / "w")
        os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = os.environ["TMPDIR"] = str(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if case.limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, case.limit))
        if count or case.operation is not None:
            counter = OperationCounter(folder / "w", case.operation)
            sys.addaudithook(counter)
        from vitdeploy.cli import main

        if kill_s is not None:
            signal.setitimer(signal.ITIMER_PROF, kill_s)
        code = main(list(case.command))
        sys.stdout.flush()
        sys.stderr.flush()
        if count:
            Path(folder, "operations").write_text(str(counter.count))
    finally:
        os._exit(code)


class OperationCounter:
    """An audit hook that counts the operations on files in a folder that change something there.

    Kills the process, and those that it has started, before one of them: writing of what libraries write themselves is
    not seen, opening and renaming of it is.
    """

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in self.CHANGES:
            return
        if isinstance(arguments[0], int):
            return
        if os.path.join(self.folder, os.fsdecode(arguments[0])).startswith(self.folder):  # noqa: PTH118 - in a hook
            self.count += 1
            if self.count == self.last:
                os.killpg(0, signal.SIGKILL)


def run_undisturbed(
    commands: Mapping[tuple[str, ...], tuple[str, ...] | None], inputs: Path, work: Path
) -> dict[tuple[str, ...], Undisturbed]:
    """Run each command that writes, and that whose output it replaces, and return what they do."""
    found = {}
    for index, (command, other) in enumerate(commands.items()):
        folders = []
        seconds = 0.0
        for words, name in ((other, "previous"), (command, "undisturbed")):
            folder = work / f"{name}-{index}"
            shutil.copytree(inputs, folder / "w", symlinks=True)
            folders.append(folder)
            if words is None:
                continue
            _, status, usage = os.wait4(fork(Case("undisturbed", name, words), folder, count=True), 0)
            if status:
                text = (folder / "stderr").read_text()
                raise SystemExit(f"an undisturbed command fails: vitdeploy {' '.join(words)}\n{text}")
            seconds = usage.ru_utime + usage.ru_stime
        before = snapshot(inputs)
        previous, made = (
            {name: digest for name, digest in snapshot(folder / "w").items() if name not in before}
            for folder in folders
        )
        found[command] = Undisturbed(
            seconds,
            int((folders[1] / "operations").read_text()),
            made,
            None if other is None else folders[0] / "w",
            frozenset(previous),
        )
    return found


def what_is_broken(case: Case, folder: Path) -> list[str]:
    """Return what is neither the earlier output nor a whole one of what a killed command has left."""
    name = next((word for word in case.command if word.split(".")[0] in ("new", "made")), "")
    path = folder / "w" / name
    if not name or case.command[0] == "run":  # a run checks what it finds itself
        return []
    if not path.exists():
        return [f"lost {name}"] if case.operation is not None else []
    if path.suffix == ".parquet":
        command = None
    elif case.command[0] == "calibration" and path.is_dir():
        command = ("calibration", "check", name)
    elif case.command[0] == "bench":
        command = ("compare", name, name)
    else:
        command = ("inspect" if path.suffix == ".engine" else "verify", name)
    if command is None:
        import pyarrow.parquet

        try:
            pyarrow.parquet.read_table(path)
        except Exception as error:
            return [f"left {name} broken: {error}"]
        return []
    check = folder / "check"
    check.mkdir(exist_ok=True)
    if not (check / "w").exists():
        (check / "w").symlink_to(folder / "w")
    if os.waitstatus_to_exitcode(os.waitpid(fork(Case("check", name, command), check), 0)[1]):
        return [f"left {name} broken: {(check / 'stdout').read_text()[-300:]}{(check / 'stderr').read_text()[-300:]}"]
    return []


def mount_read_only(folder: Path) -> None:
    """Make a folder read-only for this process alone, in a mount namespace of its own; root, too, cannot write there.

    Raises:
        OSError: The system lets nobody but root have such a namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"{function}: {os.strerror(number)}")

    try:
        call("unshare", NEW_MOUNTS)
    except OSError:
        call("unshare", NEW_MOUNTS | NEW_USER)
    name = os.fsencode(folder)
    call("mount", b"none", b"/", None, PRIVATE | RECURSIVE, None)
    call("mount", name, name, None, BIND, None)
    call("mount", b"none", name, None, BIND | REMOUNT | READ_ONLY, None)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def judge(one: Running, undisturbed: Undisturbed | None) -> None:
    """Add what a case did and must not do to its findings."""
    outcome, findings = one.outcome, one.outcome.findings
    text = "".join((one.folder / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr"))
    lines = [line for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in text:
        findings.append("printed a traceback")
    if "unexpected " in text and "Error" in text:
        findings.append(next(line for line in lines if "unexpected " in line)[:300])
    if any(ord(character) < 32 and character not in "\n\r\t" for character in text) or "\u202e" in text:
        findings.append("printed a control character")
    if outcome.code not in (0, 1, 2, 3, None):
        findings.append(f"ended with {outcome.code}")
    if outcome.case.read_only and (outcome.code != 1 or "cannot write" not in text):
        findings.append(f"ended with {outcome.code} on a read-only disk: {lines[-1][:200] if lines else ''}")
    if outcome.case.is_killed and outcome.code != 0:
        findings.append(f"did not go on after it was killed: {lines[-1][:200] if lines else ''}")
    if outcome.case.limit == 0 and outcome.code == 0:
        findings.append("claims to have written to a disk without room")
    after = snapshot(one.folder / "w")
    if outcome.case.is_killed and outcome.code == 0 and undisturbed is not None:
        outcome.left = sum(Path(name).name.startswith(TEMPORARY) for name in after)
        findings.extend(what_is_other(outcome.case, after, one.before, undisturbed))
    if outcome.code != 0 and after != one.before:
        changed = sorted(name for name in after.keys() | one.before.keys() if after.get(name) != one.before.get(name))
        changed = [name for name in changed if not name.endswith(".metrics.jsonl")]  # the log of a training that failed
        if changed and outcome.case.command[0] != "run":  # a run keeps what it finished, and goes on from there
            findings.append(f"failed and left {', '.join(changed[:3])}")
    if outcome.code == 0 and (lost := [name for name in one.before if after.get(name) != one.before[name]]):
        overwritten = outcome.case.kind == "outputs"
        findings.extend([] if overwritten else [f"changed {', '.join(lost[:3])}"])
    if any(name.endswith(SMUGGLED) for name in after) or Path("/tmp", SMUGGLED).exists():
        findings.append("ran or wrote what a file smuggled in")
    for page in (one.folder / "w").rglob("*.html"):
        if "<script>alert" in page.read_text(errors="replace"):
            findings.append(f"let a name into {page.name} as markup")


def what_is_other(
    case: Case, after: Mapping[str, str], before: Mapping[str, str], undisturbed: Undisturbed
) -> Iterator[str]:
    """Yield in what the outputs of a command that was killed and ran again differ from those of an undisturbed one."""
    made = {
        name: after[name]
        for name in after.keys() - before.keys()
        if not any(part.startswith(TEMPORARY) for part in Path(name).parts)
    }
    if missing := sorted(undisturbed.made.keys() - made.keys()):
        yield f"did not write {', '.join(missing[:3])} after it was killed"
    expected = undisturbed.made.keys() | (undisturbed.left if case.operation is not None else set())
    if more := sorted(made.keys() - expected):
        yield f"left {', '.join(more[:3])} after it was killed"
    measured = case.command[0] in ("bench", "run", "build") or "--parquet" in case.command
    other = sorted(name for name in made.keys() & undisturbed.made.keys() if made[name] != undisturbed.made[name])
    other = [name for name in other if not name.endswith(".metrics.jsonl")]
    if other and not measured:
        yield f"wrote another {', '.join(other[:3])} after it was killed"


def load_once() -> None:
    """Import what commands import, so that the processes that are forked need not."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import timm  # noqa: F401

    import vitdeploy
    import vitdeploy.cli.app
    import vitdeploy.exporting.tracing
    import vitdeploy.sources.load

    for name in vitdeploy.__all__:
        getattr(vitdeploy, name)


def main() -> int:
    """Run the storm and return 1 where it found anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="moments at which each command that writes is killed")
    parser.add_argument("--rounds", type=int, default=1, help="damaged copies of each file, command and kind of damage")
    parser.add_argument("--only", default="", help="only kinds that contain this text")
    parser.add_argument("--commands", default="", help="of those that write, only these, such as package,quantize")
    parser.add_argument("--sample", type=int, default=0, help="a seeded choice of so many cases")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    import torch

    load_once()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="storm-"))
    (work / "inputs").mkdir()
    pid = os.fork()  # what makes the inputs starts threads, and a process with threads must not be forked
    if not pid:
        sound_inputs(work / "inputs")
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        return 1
    chosen = {
        command: other
        for command, other in writers().items()
        if command[0] in (options.commands or command[0]).split(",")
    }
    undisturbed = run_undisturbed(chosen, work / "inputs", work)
    cases = [case for case in all_cases(options.rounds, options.kills, undisturbed) if options.only in case.kind]
    if options.sample:
        cases = random.Random(options.seed).sample(cases, min(options.sample, len(cases)))
    started = time.monotonic()
    outcomes = Storm(work / "inputs", work, options.seed, options.jobs, undisturbed).run(cases)
    found = [outcome for outcome in outcomes if outcome.findings]
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    figures = {
        "seed": options.seed,
        "cases": len(outcomes),
        "kinds": dict(sorted(Counter(outcome.case.kind for outcome in outcomes).items())),
        "exit_codes": dict(sorted(Counter(str(outcome.code) for outcome in outcomes).items())),
        "killed_before_their_end": sum(outcome.killed for outcome in outcomes),
        "left_unfinished_files": sum(outcome.left > 0 for outcome in outcomes),
        "findings": len(found),
        "slowest_s": round(slowest.seconds, 1),
        "slowest": f"{slowest.case.kind}, {slowest.case.name}: {slowest.case.command[0]}",
        "largest_mb": round(max(outcome.memory for outcome in outcomes) / 1e6),
    }
    print(json.dumps({**figures, "minutes": round((time.monotonic() - started) / 60, 1), "kept": str(work)}, indent=2))
    if not (options.only or options.sample or options.commands):
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    if not found:
        shutil.rmtree(work, ignore_errors=True)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
