"""Files to a host and back: each once, by its digest, on from where a broken link left it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vitdeploy.artifacts.files import TEMPORARY_PREFIX, write_error
from vitdeploy.errors import RemoteError
from vitdeploy.progress import Progress
from vitdeploy.reading import open_regular, sha256_of_file
from vitdeploy.remote.link import CHUNK, BrokenLinkError, UnreachableError, connect
from vitdeploy.text import size_text

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each new try after a broken link; a try that gets on starts them anew."""

ResultT = TypeVar("ResultT")


class LostLinkError(RemoteError):
    """The link broke for good; what is on the host stays there."""


@dataclass(frozen=True)
class Parcel:
    """A file that a host is to have: where it lies here, or its bytes, and where it is to lie in the job's folder."""

    place: str
    size: int
    sha256: str
    source: Path | bytes

    @classmethod
    def of_file(cls, path: Path, place: str) -> Parcel:
        """Return the parcel of a file, whose digest is computed."""
        return cls(place, path.stat().st_size, sha256_of_file(path), path)

    @classmethod
    def of_bytes(cls, data: bytes, place: str) -> Parcel:
        """Return the parcel of bytes that are no file here."""
        return cls(place, len(data), hashlib.sha256(data).hexdigest(), data)


def persist(host: str, attempt: Callable[[], ResultT], progress: Progress, standing: Callable[[], object]) -> ResultT:
    """Return what ``attempt`` returns, tried again where the link breaks; ``standing`` tells how far it is.

    Raises:
        RemoteError: The link breaks again and again without getting on, or the host refuses.
    """
    failures = 0
    while True:
        before = standing()
        try:
            return attempt()
        except (BrokenLinkError, UnreachableError) as error:
            if isinstance(error, UnreachableError) and failures == 0 and before == standing():
                raise  # there was no link yet: say so at once
            failures = 1 if before != standing() else failures + 1
            if failures > len(WAITS_S):
                raise LostLinkError(
                    f"the link to {host!r} keeps breaking: what has arrived stays, and the same command goes on from it"
                ) from error
            if failures == 1:
                progress.note(f"the link to {host} broke: trying again")
            time.sleep(WAITS_S[failures - 1])


def request_answer(host: str, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the one answer to a short request.

    Raises:
        RemoteError: The host cannot be reached, or refuses.
    """

    def attempt() -> dict[str, Any]:
        with connect(host, request) as connection:
            return connection.answer()

    return persist(host, attempt, progress, lambda: None)


def ship(host: str, parcels: Sequence[Parcel], progress: Progress) -> None:
    """Bring files to a host; those that it has are not sent, and one that was cut off goes on where it ended.

    Raises:
        ArtifactError: A file here cannot be read, or was written meanwhile.
        RemoteError: The host cannot be reached, has no room, or the link breaks for good.
    """
    unique = list({parcel.sha256: parcel for parcel in parcels}.values())
    request = {"verb": "put", "files": [{"sha256": parcel.sha256, "size": parcel.size} for parcel in unique]}
    arrived = {"bytes": 0}

    def attempt() -> None:
        with connect(host, request) as connection:
            offsets = connection.answer()["offsets"]
            left = sum(parcel.size - offset for parcel, offset in zip(unique, offsets, strict=True))
            if not left:
                return
            with progress.task(f"shipping {size_text(left)} to {host}", left) as task:
                for parcel, offset in zip(unique, offsets, strict=True):
                    try:
                        for data in _pieces(parcel, offset):
                            connection.send(data)
                            arrived["bytes"] += len(data)
                            task.advance(len(data))
                    except BrokenLinkError:
                        connection.answer()  # raises what the host says, where it is the one that gave up
                        raise
                    connection.answer()

    persist(host, attempt, progress, lambda: arrived["bytes"])


def fetch(host: str, job: str, file: Mapping[str, Any], path: Path, progress: Progress) -> None:
    """Bring one result of a job to ``path``, which is new or replaced as a whole, once its digest is right.

    Raises:
        ArtifactError: It cannot be written here.
        RemoteError: The link breaks for good, or what came is not what was sent.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{file['sha256'][:16]}{path.suffix}")

    def attempt() -> None:
        offset = temporary.stat().st_size if temporary.exists() else 0
        request = {"verb": "get", "job": job, "name": file["name"], "offset": offset}
        with connect(host, request) as connection, temporary.open("ab") as stream:
            left = file["size"] - offset
            with progress.task(f"fetching {path.name}", left) as task:
                while left > 0:
                    data = connection.incoming.read(min(CHUNK, left))
                    if not data:
                        raise BrokenLinkError
                    stream.write(data)
                    left -= len(data)
                    task.advance(len(data))
            stream.flush()
            os.fsync(stream.fileno())

    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            persist(host, attempt, progress, lambda: temporary.stat().st_size if temporary.exists() else 0)
        except OSError as error:
            raise write_error(path, error) from error
        if sha256_of_file(temporary) != file["sha256"]:
            raise RemoteError(f"{path.name} arrived damaged from {host!r}: run the same command again")
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def _pieces(parcel: Parcel, offset: int) -> Iterator[bytes]:
    if isinstance(parcel.source, bytes):
        yield from (parcel.source[start : start + CHUNK] for start in range(offset, parcel.size, CHUNK))
        return
    with open_regular(parcel.source) as stream:
        stream.seek(offset)
        left = parcel.size - offset
        while left:
            data = stream.read(min(CHUNK, left))
            if not data:
                raise RemoteError(
                    f"{str(parcel.source)!r} was written while it was shipped: run the same command again"
                )
            left -= len(data)
            yield data
