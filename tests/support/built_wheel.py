"""The wheel as users get it, and commands in environments of their own: for what runs on other machines' versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "tests" / "jetpack" / "constraints.txt"
"""The versions that JetPack 6 gets."""


def run(*words: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command without this process's Python path; raise with its output where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**environment, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, words))}: exit code {done.returncode}")
    if lines := done.stdout.strip().splitlines():
        print(lines[-1], flush=True)


def build_wheel(folder: Path) -> Path:
    """Return the wheel that is built from the sdist, both in ``folder``: so both are known to be whole."""
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_artifacts(folder: Path) -> Path:
    """Return the folder of a finished quick run, below ``folder``: what a workstation hands over."""
    imports = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    run(sys.executable, ROOT / "tests" / "jetpack" / "make_artifacts.py", folder, PYTHONPATH=imports)
    return folder / "run"
