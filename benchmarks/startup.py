"""Seconds and modules of ``vitdeploy --help`` and of an up-to-date ``vitdeploy run``.

    python benchmarks/startup.py [FOLDER]

Each command runs nine times in a fresh process; the median and the fastest are printed, with which of the heavy
libraries it loaded. FOLDER is a finished run (default ``vitdeploy-run``); where there is none, that row says so.
The aims are 0.5 s for ``--help`` and 3 s for the run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "matplotlib", "pydantic", "rich")
REPEATS = 9
PROBE = """
import json, sys
from vitdeploy.cli import main
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as stream:
    json.dump({"code": code, "modules": [name for name in %r if name in sys.modules]}, stream)
"""


def seconds(arguments: list[str]) -> list[float]:
    """Return the wall times of a command, one per fresh process."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vitdeploy", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times


def modules(arguments: list[str], scratch: Path) -> list[str]:
    """Return which heavy modules a command has loaded when it ends."""
    program = PROBE % (HEAVY,)
    subprocess.run([sys.executable, "-c", program, str(scratch), *arguments], check=True, capture_output=True)
    return list(json.loads(scratch.read_text())["modules"])


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "vitdeploy-run")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, n = {REPEATS}")
    rows = {"vitdeploy --help": ["--help"], "vitdeploy train --help": ["train", "--help"]}
    if (folder / "run.json").is_file():
        rows["vitdeploy run (up to date)"] = ["run", "--output", str(folder)]
    else:
        print(f"no finished run in {str(folder)!r}: 'make demo' first, to time the up-to-date run too")
    scratch = folder.parent / f".startup-{os.getpid()}.json"
    try:
        for name, arguments in rows.items():
            times = seconds(arguments)
            loaded = ", ".join(modules(arguments, scratch)) or "none of them"
            print(f"{name:28} median {statistics.median(times):.2f} s, fastest {min(times):.2f} s; loads {loaded}")
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
