"""Files that TensorRT fills and reads again: kernel timings of builds, kernels that TensorRT-RTX compiled at load.

A file is named after what its content depends on and begins with a digest of it. One that is damaged, or of another
library, GPU or driver, is left out with a note and written anew; it is never handed to TensorRT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from vitdeploy.artifacts.files import write_atomically
from vitdeploy.environment import cache_folder
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.records.base import sha256_of

MAGIC = b"vitdeploy cache 1\n"
DIGEST_BYTES = 32


def cache_path(kind: str, *parts: str | None) -> Path:
    """Return the file of a cache of ``kind`` whose content depends on ``parts``."""
    return cache_folder() / kind / f"{sha256_of({'kind': kind, 'parts': list(parts)})[:32]}.bin"


def refuse_foreign(path: Path) -> None:
    """Raise where a file is there that vitdeploy did not write: renewing it would destroy it.

    Raises:
        UsageError: In one line.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError:  # absent, or unreadable: then it is left out with a note
        return
    if start and start != MAGIC[: len(start)]:
        raise UsageError(
            f"{str(path)!r} is no timing cache of vitdeploy, which checks what it wrote and would write it anew: name "
            "another file with timing_cache="
        )


def read_cache(path: Path, note: Callable[[str], object]) -> bytes:
    """Return what a cache holds; nothing where there is none, or where it is not what was written."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        note(f"the cache {str(path)!r} cannot be read ({error.strerror}) and is left out")
        return b""
    start = len(MAGIC) + DIGEST_BYTES
    held = data[start:]
    if not data.startswith(MAGIC) or hashlib.sha256(held).digest() != data[len(MAGIC) : start]:
        note(f"the cache {str(path)!r} is damaged or no cache of vitdeploy: it is left out and written anew")
        return b""
    return held


def write_cache(path: Path, held: bytes, note: Callable[[str], object]) -> None:
    """Keep ``held``; a place that cannot be written costs the cache, not the work that filled it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, MAGIC + hashlib.sha256(held).digest() + held)
    except (ArtifactError, OSError) as error:
        note(f"the cache {str(path)!r} cannot be written: {error}")
