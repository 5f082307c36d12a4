"""What kill -9 leaves, whatever operation on files it comes before: the earlier output or the new one, whole."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.artifacts import read_engine
from vitdeploy.artifacts.calibration_table import TensorRange, read_calibration_table, write_calibration_table
from vitdeploy.artifacts.engine import write_engine
from vitdeploy.artifacts.files import TEMPORARY_PREFIX, FilesTogether, atomic_folder, write_atomically
from vitdeploy.artifacts.ownership import is_ours
from vitdeploy.artifacts.pages import other_files, other_pages, write_with_pages
from vitdeploy.records import Manifest, ModelSpec


class Dead(BaseException):
    """The process is killed: it is no error that anything handles."""


class Kill:
    """An audit hook; once armed, it ends the work before one operation that changes files, and all that follow it.

    As after kill -9, nothing is cleaned up: what a ``finally`` would remove is not removed.
    """

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "ctypes.dlsym")

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in self.CHANGES:
            if self.left <= 0:
                raise Dead
            self.left -= 1


KILL = Kill()
sys.addaudithook(KILL)  # for good: Python takes none away again


@contextmanager
def killed_before(operation: int) -> Iterator[None]:
    """Let the block die before its operation of this number; one that has fewer ends as usual."""
    KILL.left = operation
    try:
        yield
    except Dead:
        pass
    finally:
        KILL.left = None


def engine(path: Path, turn: int) -> None:
    write_engine(
        path,
        f"plan {turn}".encode(),
        Manifest(kind="engine", created_by="a test", model=ModelSpec(family="vit", name=f"model {turn}")),
    )


def read_plan(path: Path) -> int:
    turn = int(path.read_bytes().removeprefix(b"plan "))
    assert read_engine(path).manifest.model.name == f"model {turn}"
    return turn


def table(path: Path, turn: int) -> None:
    manifest = Manifest(
        kind="calibration-table", created_by="a test", model=ModelSpec(family="vit", name=f"model {turn}")
    )
    value, none = np.full(1, turn, np.float32), np.zeros(0, np.uint64)
    seen = TensorRange(None, -value, value, 1, None, np.zeros(4, np.int64), none, np.zeros((0, 1, 1), np.float32))
    write_calibration_table(path, {"x": seen}, manifest)


def read_table(path: Path) -> int:
    found = read_calibration_table(path)
    turn = int(found.ranges["x"].hi[0])
    assert found.manifest.model.name == f"model {turn}"
    return turn


def folder(path: Path, turn: int) -> None:
    with atomic_folder(path) as empty:
        for name in ("a", "b"):
            (empty / name).write_text(str(turn))


def read_folder(path: Path) -> int:
    assert sorted(file.name for file in path.iterdir()) == ["a", "b"]
    (turn,) = {int(file.read_text()) for file in path.iterdir()}
    return turn


def file(path: Path, turn: int) -> None:
    write_atomically(path, str(turn))


def read_file(path: Path) -> int:
    return int(path.read_text())


def pages(path: Path, turn: int) -> None:
    page = f"<head>\n</head>{turn}"
    write_with_pages(path, json.dumps(turn), [(path.with_suffix(".html"), page), (path.with_suffix(".md"), str(turn))])


def read_pages(path: Path) -> int:
    """Read the JSON; a page that shows another one is known as that, and only such a page."""
    turn, beside = int(path.read_text()), [path.with_suffix(".html"), path.with_suffix(".md")]
    others = [page for page in beside if page.is_file() and not re.search(rf"(</head>|^){turn}\b", page.read_text())]
    assert other_pages(path, beside) == others
    return turn


def bench(path: Path, turn: int) -> None:
    with FilesTogether() as files:
        beside = {name: files.write(path.with_name(name), str(turn)) for name in ("x.npz", "x.parquet")}
        record = json.dumps({"turn": turn, "files": beside})
        write_with_pages(path, record, [(path.with_suffix(".html"), f"<head>\n</head>{turn}")], files)


def read_bench(path: Path) -> int:
    """Read the JSON; a file beside it that is of another one is known as that, and only such a file."""
    content = json.loads(path.read_text())
    beside = [path.with_name(name) for name in content["files"]]
    others = [file for file in beside if file.is_file() and int(file.read_text()) != content["turn"]]
    assert other_files(path, content["files"]) == others
    return int(content["turn"])


KINDS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], int]]] = {
    "an engine": ("x.engine", engine, read_plan),
    "a calibration table": ("x.calib.json", table, read_table),
    "a folder": ("x.bundle", folder, read_folder),
    "JSON with pages": ("x.json", pages, read_pages),
    "JSON with a page and files that it names": ("x.json", bench, read_bench),
    "a file": ("x.txt", file, read_file),
}


@pytest.mark.parametrize(("name", "write", "read"), KINDS.values(), ids=list(KINDS))
def test_a_kill_leaves_the_earlier_output_or_the_new_one(
    tmp_path: Path, name: str, write: Callable[[Path, int], None], read: Callable[[Path], int]
) -> None:
    path = tmp_path / name
    write(path, 0)
    seen = []
    for turn in range(1, 60):
        before = read(path)
        with killed_before(turn - 1):
            write(path, turn)
        found = read(path)
        assert found in (before, turn), f"killed before operation {turn}"
        seen.append(found == turn)
        if len(seen) > 2 and all(seen[-3:]):
            break
    assert seen[0] is False
    assert all(seen[-3:]), "was killed to the end"
    write(path, 99)
    assert read(path) == 99
    if read_pages is read:
        assert other_pages(path, [path.with_suffix(".html"), path.with_suffix(".md")]) == []
    elif path.suffix in (".engine", ".json"):
        described = path.with_name("x.engine.json") if path.suffix == ".engine" else path
        assert "previous" not in described.read_text(), "what is whole again keeps no earlier description"


@pytest.mark.parametrize(("name", "write", "read"), KINDS.values(), ids=list(KINDS))
def test_a_first_output_is_there_wholly_or_not_at_all(
    tmp_path: Path, name: str, write: Callable[[Path, int], None], read: Callable[[Path], int]
) -> None:
    for operation in range(60):
        path = tmp_path / str(operation) / name
        path.parent.mkdir()
        with killed_before(operation):
            write(path, 1)
        if path.exists() and (path.suffix != ".engine" or path.with_name("x.engine.json").exists()):
            assert read(path) == 1
            return
        for left in path.parent.iterdir():
            assert left.name.startswith(TEMPORARY_PREFIX) or is_ours(left), f"{left.name} stands in the way"
    raise AssertionError("it was never written")
