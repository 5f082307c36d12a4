"""Damage: what is done to a sound input, as functions of the folder with the inputs and a seeded generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Prepare = Callable[[Path, random.Random], None]

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
SMUGGLED = "smuggled"
"""The file that code within an input would write."""
HUGE = 1 << 62
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)


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
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {SMUGGLED}",)


def _header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _npy(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(min(width, 1 << 20) + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _long_image(width: int, height: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def made_by_hand(files: Iterable[str]) -> Iterator[tuple[str, str, str, Prepare]]:
    """Yield kind, name, file and damage that no flip of bits would find; ``files`` are all that commands read."""
    json_files = ("table.calib.json", "set/manifest.json", "report/report.json", "hub/config.json", "preprocess.json",
                  "hub/preprocessor_config.json", "names.txt")  # fmt: skip
    yaml_files = ("recipe.yaml", "plan.yaml")
    texts = {
        "deep lists": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
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
    for name in files:
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


def external_data_elsewhere(folder: Path, rng: random.Random) -> None:
    import onnx

    model = onnx.load(folder / "theirs.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())


def hostile_classes(folder: Path, rng: random.Random) -> None:
    (folder / "names.txt").write_text("\n".join(f"{HOSTILE}{index}" for index in range(10)))
