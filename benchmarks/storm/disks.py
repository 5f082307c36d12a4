"""Disks that are full or take no writing, as mounts that one process sees and that go with it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
"""Flags of Linux's unshare(2) and mount(2)."""
ENOUGH = 1 << 30


def own_mounts() -> None:
    """Give this process mounts of its own; a user without root becomes root of a namespace for that.

    Raises:
        OSError: The system lets nobody but root have such a namespace.
    """
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", NEW_MOUNTS)
    except OSError:
        _call("unshare", NEW_MOUNTS | NEW_USER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", b"none", b"/", None, PRIVATE | RECURSIVE, None)


def mount_disk(folder: Path) -> None:
    """Mount a disk of its own on an empty folder."""
    _call("mount", b"none", os.fsencode(folder), b"tmpfs", 0, f"size={ENOUGH}".encode())


def fill(folder: Path, room: int) -> None:
    """Leave the disk on a folder so many bytes, rounded up to whole pages."""
    disk = os.statvfs(folder)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    _call("mount", b"none", os.fsencode(folder), None, REMOUNT, f"size={used + room}".encode())


def make_read_only(folder: Path) -> None:
    """Let nobody write in a folder, root neither."""
    name = os.fsencode(folder)
    _call("mount", name, name, None, BIND, None)
    _call("mount", b"none", name, None, BIND | REMOUNT | READ_ONLY, None)


def _call(function: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
