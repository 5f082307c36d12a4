"""Outputs go to regular files or new names, never to a device, an input, or what another process is writing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vitdeploy.artifacts import atomic_path, write_atomically
from vitdeploy.artifacts.locks import hold_file, hold_folder, refuse_held, remove_left_lock
from vitdeploy.artifacts.outputs import folder_or_nothing, refuse_unwritable, refuse_unwritable_folder
from vitdeploy.errors import ArtifactError

HOLD = (
    "import sys, pathlib; from vitdeploy.artifacts.locks import {0}\n"
    "with {0}(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def holder(what: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(what), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_no_device_pipe_or_folder_is_written_or_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to("/dev/null")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    cases = {
        Path("/dev/null"): "is a device, expected the name of an ONNX file",
        tmp_path / "link.onnx": "is a device",
        tmp_path / "fifo.onnx": "is a named pipe",
        tmp_path / "folder.onnx": "is a folder, expected the name of an ONNX file",
        tmp_path / "a\0b.onnx": "is not a name that a file can have",
        tmp_path / ("x" * 300 + ".onnx"): "File name too long",
    }
    for path, reason in cases.items():
        with pytest.raises(ArtifactError, match=reason):
            refuse_unwritable(path, "an ONNX file")
    for path in before:
        with pytest.raises(ArtifactError, match="is no regular file"), atomic_path(path) as temporary:
            temporary.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="is no regular file"):
        write_atomically(Path("/dev/null"), b"x")
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before
    assert not Path("/dev/null").is_file()


def test_an_input_is_not_an_output_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"graph")
    (tmp_path / "symbolic.onnx").symlink_to("model.onnx")
    os.link(source, tmp_path / "hard.onnx")
    for name in ("model.onnx", "symbolic.onnx", "hard.onnx", "../" + tmp_path.name + "/model.onnx"):
        with pytest.raises(ArtifactError, match=r"is the input '.*model\.onnx' itself: choose another name"):
            refuse_unwritable(tmp_path / name, "an ONNX file", inputs=(None, source))
    refuse_unwritable(tmp_path / "other.onnx", "an ONNX file", inputs=(source, "digits", 3))


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("x.pth", "an ONNX file", r"is the name of a PyTorch file, .*such as '.*x\.onnx'"),
        ("x.pt", "a checkpoint", r"is the name of a PyTorch file, .*such as '.*x\.safetensors'"),
        ("x.PTH", "an engine file", r"is the name of a PyTorch file, .*such as '.*x\.engine'"),
        ("x.json", "an ONNX file", r"is the name of a text file"),
        ("x.npz", "a checkpoint", r"is the name of a NumPy file"),
    ],
)
def test_a_name_of_another_kind_is_refused_with_one_that_fits(tmp_path: Path, name: str, what: str, hint: str) -> None:
    with pytest.raises(ArtifactError, match=hint):
        refuse_unwritable(tmp_path / name, what)


def test_what_is_written_beside_counts(tmp_path: Path) -> None:
    (tmp_path / "x.engine.json").mkdir()
    with pytest.raises(ArtifactError, match=r"x\.engine\.json' is a folder, expected a file"):
        refuse_unwritable(tmp_path / "x.engine", "an engine file", beside=(tmp_path / "x.engine.json",))
    (tmp_path / "report.html").symlink_to("/dev/null")
    with pytest.raises(ArtifactError, match=r"report\.html' is a device"):
        refuse_unwritable_folder(tmp_path, ("report.json", "report.html"))


def test_a_file_in_a_folder_that_a_run_holds_is_refused(tmp_path: Path) -> None:
    process = holder("hold_folder", tmp_path / "run")
    with pytest.raises(ArtifactError, match=rf"another vitdeploy is at work on .* \(process {process.pid}\): wait"):
        refuse_unwritable(tmp_path / "run" / "model.onnx", "an ONNX file")
    refuse_unwritable(tmp_path / "model.onnx", "an ONNX file")
    process.communicate("")
    refuse_unwritable(tmp_path / "run" / "model.onnx", "an ONNX file")


def test_a_checkpoint_that_is_being_trained_is_refused_and_its_lock_vanishes(tmp_path: Path) -> None:
    output = tmp_path / "vit.safetensors"
    process = holder("hold_file", output)
    attempts: list[Callable[[], object]] = [
        lambda: refuse_unwritable(output, "a checkpoint"),
        lambda: hold_file(output).__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises(ArtifactError, match=rf"at work on .*process {process.pid}"):
            attempt()
    refuse_unwritable(tmp_path / "other.safetensors", "a checkpoint")
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    for what, hold in (("hold_file", hold_file), ("hold_folder", hold_folder)):
        process = holder(what, tmp_path / "x")
        process.kill()
        process.communicate()
        refuse_held(tmp_path / "x" / "model.onnx")
        with hold(tmp_path / "x"):
            pass


def test_what_this_process_or_its_parent_holds_is_its_own(tmp_path: Path) -> None:
    with hold_folder(tmp_path):
        refuse_held(tmp_path / "model.onnx")
        program = "import sys; from pathlib import Path; from vitdeploy.artifacts import locks; "
        program += "locks.refuse_held(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.onnx")], check=True)


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(RuntimeError, match="refused"), hold_folder(folder):
            raise RuntimeError("refused")
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert list((tmp_path / "there").iterdir()) == []

    def write_and_fail() -> None:
        with hold_folder(tmp_path / "used"):
            (tmp_path / "used" / "model.onnx").touch()
            raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        write_and_fail()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_a_block_that_fails_is_removed_where_it_is_new(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "report"
    if there:
        folder.mkdir()
        (folder / "old").write_text("old")

    def fill() -> None:
        write_atomically(folder / "new", "new")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"), folder_or_nothing(folder):
        fill()
    assert folder.exists() == there
    assert (folder / "old").exists() == there


@pytest.mark.parametrize(
    ("hold", "name"), [(hold_file, "x.safetensors"), (hold_folder, "there"), (hold_folder, "new/run")]
)
def test_a_full_disk_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[Path], AbstractContextManager[None]], name: str
) -> None:
    (tmp_path / "there").mkdir()

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ArtifactError, match="the disk is full"), hold(tmp_path / name):
            raise AssertionError("it is not held")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with hold(tmp_path / name):
        pass


@pytest.mark.parametrize("number", ["999999999\n", "", "no number"])
def test_the_lock_of_a_killed_process_is_removed_and_one_that_is_held_is_not(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.safetensors"
    (tmp_path / ".x.safetensors.lock").touch()
    (tmp_path / ".x.safetensors.lock.pid").write_text(number)
    remove_left_lock(path)
    assert list(tmp_path.iterdir()) == []
    remove_left_lock(path)
    with hold_file(path), pytest.raises(ArtifactError, match="another vitdeploy is at work"):
        remove_left_lock(path)
