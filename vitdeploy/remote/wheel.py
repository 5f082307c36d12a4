"""The wheel of the package that runs here, made from its own files: what a host runs is what is installed here."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import re
import zipfile
from functools import cache
from pathlib import Path

import vitdeploy

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same files give the same bytes, so that a wheel is shipped once."""
LEFT_OUT = {"__pycache__", ".mypy_cache"}


@cache
def make_wheel() -> bytes:
    """Return a wheel of the installed package (PyPA, binary distribution format 1.0), of an editable one too."""
    folder = Path(vitdeploy.__file__).parent
    files = {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not LEFT_OUT & set(path.parts)
    }
    info = f"vitdeploy-{vitdeploy.__version__}.dist-info"
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: vitdeploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return packed.getvalue()


def requirements() -> list[tuple[str, str]]:
    """Return name and least version of each package that vitdeploy needs everywhere; empty where it is not installed.

    Those of extras are left out: what a job needs beyond the base, it names itself.
    """
    try:
        stated = importlib.metadata.requires("vitdeploy") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    base = [text for text in stated if "extra ==" not in text]
    found = (re.match(r"([\w.-]+?)\s*>=\s*([\d.]+)", text) for text in base)
    return [(match[1], match[2]) for match in found if match is not None]


def _metadata() -> str:
    head = f"Metadata-Version: 2.1\nName: vitdeploy\nVersion: {vitdeploy.__version__}\n"
    return head + "".join(f"Requires-Dist: {name}>={least}\n" for name, least in requirements())


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
