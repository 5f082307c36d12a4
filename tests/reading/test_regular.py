"""Only regular files are read, and what is none is refused at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy.errors import ArtifactError
from vitdeploy.reading import open_regular, read_bytes, read_head, require_regular, sha256_of_file

READERS: list[Callable[[Path], object]] = [read_bytes, open_regular, sha256_of_file, require_regular]


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_and_nothing_waits(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        cases = {
            tmp_path / "fifo": "is a named pipe, expected a file",
            tmp_path / "link": "is a named pipe, expected a file",
            tmp_path / "loop": "symbolic links lead in a circle",
            tmp_path / "s": "is a socket, expected a file",
            tmp_path: "is a folder, expected a file",
            Path("/dev/null"): "is a device, expected a file",
            Path("/dev/zero"): "is a device, expected a file",
            tmp_path / "none": "there is no file",
            tmp_path / "x\0y": "is not a name that a file can have",
            tmp_path / ("x" * 300): "File name too long",
        }
        for path, reason in cases.items():
            with pytest.raises(ArtifactError, match=reason):
                read(path)


def test_a_file_is_read_through_its_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b") == b"content"
    assert read_head(tmp_path / "b", 3) == b"con"
    with pytest.raises(ArtifactError, match="has 7 B, expected at most 6 B"):
        read_bytes(tmp_path / "a", limit=6)
