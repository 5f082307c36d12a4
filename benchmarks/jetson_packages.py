"""Which versions pip takes on a Jetson: everything from an ONNX file onwards, for Python and glibc of JetPack 6 and 7.

    python benchmarks/jetson_packages.py

pip resolves the project's dependencies for aarch64 from wheels alone, so a package without one for that platform is an
error; nothing is installed. The table goes into ``docs/jetson.md``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "jetson.md"
BEGIN, END = "<!-- what pip takes -->\n", "<!-- end of it -->\n"
OLDEST_GLIBC = 17  # of manylinux2014


@dataclass(frozen=True)
class Board:
    """What pip needs to know of a JetPack: its Python, the minor version of glibc 2, and the extra for its CUDA."""

    name: str
    python: str
    glibc: int
    extra: str


BOARDS = (Board("JetPack 6", "3.10", 35, "cuda12"), Board("JetPack 7", "3.12", 39, "cuda13"))


def wanted(extra: str) -> list[str]:
    """Return the requirements of the installed vitdeploy with one of its extras."""
    found = []
    for requirement in importlib.metadata.requires("vitdeploy") or ():
        what, _, marker = requirement.partition(";")
        if not marker or marker.strip() == f'extra == "{extra}"':
            found.append(what.strip())
    return found


def names(extra: str) -> list[str]:
    """Return the names of the requirements, in order."""
    return [re.match(r"[\w.-]+", requirement)[0] for requirement in wanted(extra)]  # type: ignore[index]


def resolved(board: Board) -> dict[str, str]:
    """Return the version of each package that pip would install on a board, by its name in lower case.

    Raises:
        subprocess.CalledProcessError: A package has no wheel for the platform, or there is no registry.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary=:all:", f"--target={folder}", f"--report={report}"]
        command += ["--implementation=cp", f"--python-version={board.python}"]
        command += [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(OLDEST_GLIBC, board.glibc + 1)]
        subprocess.run([*command, "--platform=manylinux2014_aarch64", *wanted(board.extra)], check=True)
        installs = json.loads(report.read_text("utf8"))["install"]
    return {one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"] for one in installs}


def table(versions: dict[str, dict[str, str]], day: str) -> str:
    """Return the table: a line for each requirement, a column for each board."""
    lines = [f"| package | {' | '.join(f'{board.name}, Python {board.python}' for board in BOARDS)} |"]
    lines += [f"| --- | {' | '.join('---' for _ in BOARDS)} |"]
    lines += [
        f"| {name} | {' | '.join(versions[board.name][name] for board in BOARDS)} |" for name in names(BOARDS[0].extra)
    ]
    lines += ["", f"Resolved on {day} (`python benchmarks/jetson_packages.py`); a newer day may give newer ones."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Renew the table."""
    versions = {board.name: resolved(board) for board in BOARDS}
    head, rest = PAGE.read_text("utf8").split(BEGIN)
    _, tail = rest.split(END)
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    PAGE.write_text(f"{head}{BEGIN}\n{table(versions, day)}\n{END}{tail}", "utf8")


if __name__ == "__main__":
    main()
