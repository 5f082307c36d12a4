"""What runs on the host: one request per connection, by nothing but the standard library of its Python.

A request is the first line that comes in. The text of this file is handed to the host's Python, so nothing of vitdeploy
is imported here. What is kept lies below ``$VITDEPLOY_CACHE`` or ``~/.cache/vitdeploy``, in ``remote/``:

    blobs/SHA256         files that were shipped, whole and verified, under the digest of their bytes
    parts/SHA256         what has arrived of a file whose link broke
    packages/SHA256/     vitdeploy itself, unpacked
    jobs/ID/             a job: request.json, in/, out/, events.jsonl, log.txt; gone when its result was fetched

Blobs, parts and jobs that nobody has asked for in 30 days are removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MARK = b"vitdeploy-board-1\n"
"""Comes before every answer, since a shell's start-up files may print something first."""
CHUNK = 1 << 20
KEEP_S = 30 * 86400
POLL_S = 0.1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOG_TAIL = 2000

Request = Mapping[str, Any]


class RefusedError(Exception):
    """A request that cannot be served; ``answer`` says why."""

    def __init__(self, **answer: Any) -> None:
        super().__init__(answer)
        self.answer = answer


def serve(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Serve one request: ``look``, ``put``, ``start``, ``follow``, ``get`` or ``drop``."""
    verbs: dict[str, Callable[[Request, BinaryIO, BinaryIO], None]] = {
        "look": look,
        "put": put,
        "start": start,
        "follow": follow,
        "get": get,
        "drop": drop,
    }
    outgoing.write(MARK)
    outgoing.flush()
    try:
        verbs[request["verb"]](request, incoming, outgoing)
    except RefusedError as refusal:
        _answer(outgoing, **refusal.answer)
    except OSError as error:
        full = error.errno in FULL
        _answer(outgoing, error="full" if full else "system", text=error.strerror or str(error), path=error.filename)


def root() -> Path:
    """Return the folder of all that is kept here."""
    named = os.environ.get("VITDEPLOY_CACHE")
    cache = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdeploy"
    return cache / "remote"


def look(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Say what this host is, and which of ``request['requires']``, pairs of name and least version, it lacks."""
    _answer(
        outgoing,
        python=platform.python_version(),
        executable=sys.executable,
        os=platform.platform(),
        cache=str(root()),
        free_bytes=_free_bytes(root()),
        free_memory_bytes=_free_memory(),
        missing=[name for name, least in request["requires"] if not _is_installed(name, least)],
        nv_tegra_release=_text(Path("/etc/nv_tegra_release")),
        power_mode=_output(["nvpmodel", "-q"]),
        tensorrt=_output(["dpkg-query", "--show", "--showformat=${Version}", "python3-libnvinfer"]),
    )


def put(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Take files: answer from which byte of each, read these bytes, and answer what became of each file."""
    blobs, parts = _folder("blobs"), _folder("parts")
    _remove_old()
    offsets, lacking = [], 0
    for file in request["files"]:
        blob, part = blobs / file["sha256"], parts / file["sha256"]
        if blob.is_file() and blob.stat().st_size == file["size"]:
            os.utime(blob)
            offsets.append(file["size"])
            continue
        there = part.stat().st_size if part.is_file() else 0
        if there > file["size"]:
            part.unlink()
            there = 0
        offsets.append(there)
        lacking += file["size"] - there
    free = _free_bytes(root())
    if lacking > free:
        raise RefusedError(error="space", lacking=lacking, free=free, path=str(root()))
    _answer(outgoing, offsets=offsets)
    for file, offset in zip(request["files"], offsets, strict=True):
        blob, part = blobs / file["sha256"], parts / file["sha256"]
        if not blob.is_file():
            _receive(file, offset, part, blob, incoming)
        _answer(outgoing, stored=file["sha256"])


def _receive(file: Mapping[str, Any], offset: int, part: Path, blob: Path, incoming: BinaryIO) -> None:
    """Write the rest of a file behind what is there; the whole becomes the blob where its digest is right.

    Written at its place, not appended: a connection that is dying may still write the same bytes.
    """
    left = file["size"] - offset
    try:
        with open(part, "r+b" if part.exists() else "w+b") as stream:  # noqa: PTH123 - one way for both modes
            stream.seek(offset)
            while left:
                data = incoming.read(min(CHUNK, left))
                if not data:
                    raise RefusedError(error="cut")
                stream.write(data)
                left -= len(data)
            stream.flush()
            os.fsync(stream.fileno())
            stream.seek(0)
            digest = hashlib.sha256()
            while data := stream.read(CHUNK):
                digest.update(data)
    except OSError as error:
        if error.errno in FULL:  # a device with a full disk is worse than a second transfer
            part.unlink(missing_ok=True)
        raise
    if digest.hexdigest() != file["sha256"]:
        part.unlink()
        raise RefusedError(error="digest", sha256=file["sha256"])
    part.replace(blob)


def start(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Start a job that goes on without the link; one that an earlier link has left is taken over."""
    job = _folder("jobs") / request["job"]
    if (job / "events.jsonl").is_file() and (is_running(job) or _has_ended(job)):
        _answer(outgoing, taken_over=True)
        return
    shutil.rmtree(job, ignore_errors=True)
    package = _unpacked(request["package"])
    for place, sha256 in request["files"]:
        file = job / "in" / place
        if not file.resolve().is_relative_to((job / "in").resolve()):
            raise RefusedError(error="system", text="a file's name leads out of the job's folder", path=place)
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(_folder("blobs") / sha256, file)
    (job / "out").mkdir(parents=True)
    (job / "request.json").write_text(json.dumps(request["task"]), encoding="utf8")
    (job / "events.jsonl").touch()
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    with (job / "log.txt").open("wb") as log, (job / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the last process that has it
        worker = subprocess.Popen(
            [sys.executable, "-m", "vitdeploy.remote.worker", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=job,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        (job / "pid").write_text(str(worker.pid))
    _answer(outgoing, taken_over=False)


def follow(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Send a job's events from a byte on until it has ended."""
    job = _job(request)
    with (job / "events.jsonl").open("rb") as events:
        events.seek(request["offset"])
        while True:
            running = is_running(job)
            while data := events.read(CHUNK):
                outgoing.write(data)
            outgoing.flush()
            if not running:
                break
            if select.select([incoming], [], [], POLL_S)[0]:  # its end: the link is gone, and nobody reads
                return
    if not _has_ended(job):
        _answer(outgoing, event="died", log=_text(job / "log.txt")[-LOG_TAIL:])


def get(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Send a result of a job from a byte on."""
    with (_job(request) / "out" / request["name"]).open("rb") as stream:
        stream.seek(request["offset"])
        shutil.copyfileobj(stream, outgoing, CHUNK)


def drop(request: Request, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """End a job where it runs, and remove it."""
    _remove_job(_folder("jobs") / request["job"])
    _answer(outgoing, dropped=True)


def is_running(job: Path) -> bool:
    """Return whether a job's process lives; it holds the job's lock, so another process with its number is not it."""
    try:
        with (job / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _remove_job(job: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(50):
            if not is_running(job):
                break
            try:
                os.killpg(int((job / "pid").read_text()), number)
            except (OSError, ValueError):
                break
            time.sleep(POLL_S)
    shutil.rmtree(job, ignore_errors=True)


def _has_ended(job: Path) -> bool:
    lines = _text(job / "events.jsonl").splitlines()
    return bool(lines) and json.loads(lines[-1])["event"] in ("done", "error")


def _unpacked(sha256: str) -> Path:
    """Return the folder of a package, which is unpacked where it is not there."""
    folder = _folder("packages") / sha256
    if not folder.is_dir():
        temporary = folder.with_name(f".{sha256}-{os.getpid()}")
        try:
            with zipfile.ZipFile(_folder("blobs") / sha256) as archive:
                archive.extractall(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have been first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    os.utime(folder)
    return folder


def _remove_old() -> None:
    for path in _old_entries():
        if path.parent.name == "jobs":
            if not is_running(path):
                shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _old_entries() -> Iterator[Path]:
    for name in ("blobs", "parts", "packages", "jobs"):
        for path in _folder(name).iterdir():
            if time.time() - path.stat().st_mtime > KEEP_S:
                yield path


def _job(request: Request) -> Path:
    job = _folder("jobs") / request["job"]
    if not (job / "events.jsonl").is_file():
        raise RefusedError(error="gone")
    return job


def _folder(name: str) -> Path:
    folder = root() / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _free_memory() -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _is_installed(name: str, least: str) -> bool:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return _numbers(version) >= _numbers(least)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _answer(outgoing: BinaryIO, **content: Any) -> None:
    outgoing.write(json.dumps(content).encode() + b"\n")
    outgoing.flush()


if __name__ == "__main__":
    serve(json.loads(sys.stdin.buffer.readline()), sys.stdin.buffer, sys.stdout.buffer)
