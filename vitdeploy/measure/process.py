"""Load time, first inference and peak memory of one candidate, each in a fresh process.

In the process that opens several runtimes in turn, the second one finds libraries loaded and memory already taken, so
these three are asked of a child that opens one candidate and nothing else. The child is a module given by name
(``vitdeploy.benching.probe``): it reads a request as JSON on stdin and answers with ``answer`` on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vitdeploy.measure
from vitdeploy.sessions import Feed, Session

ANSWER_MARK = "vitdeploy-probe "
DEFAULT_TIMEOUT_S = 600.0
PROC_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ProcessCost:
    """What one candidate costs a process that does nothing else; None with the ``reason`` where it could not be told.

    ``load_ms`` is from the file to an open session, with the runtime's library already imported.
    ``peak_memory_bytes`` is the largest resident set of the whole process on the host up to the end of the first
    inference, interpreter and runtime included; memory on a GPU is not in it.
    """

    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: int | None = None
    reason: str = ""


def measure_in_child(
    module: str, request: Mapping[str, Any], *, timeout_s: float = DEFAULT_TIMEOUT_S, python: str = sys.executable
) -> ProcessCost:
    """Run ``python -m module`` with ``request`` on its stdin and return its answer; never raises for what it does."""
    root = str(Path(vitdeploy.measure.__file__).parents[2])
    search = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    try:
        done = subprocess.run(
            [python, "-m", module],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": search},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ProcessCost(reason=f"its process was stopped after {timeout_s:g} s")
    except OSError as error:
        return ProcessCost(reason=f"its process could not be started: {error.strerror or error}")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(ANSWER_MARK):
            try:
                return ProcessCost(**json.loads(line[len(ANSWER_MARK) :]))
            except (ValueError, TypeError):
                return ProcessCost(reason=f"its process gave an answer that cannot be read: {line[:120]!r}")
    return ProcessCost(reason=_exit_text(done.returncode, done.stderr))


def observe(open_session: Callable[[], Session], feed_of: Callable[[Session], Feed]) -> ProcessCost:
    """Open a session, run it once, and return what that cost this process."""
    start = time.perf_counter_ns()
    with open_session() as session:
        loaded = time.perf_counter_ns()
        feed = feed_of(session)
        before = time.perf_counter_ns()
        session.run(feed)
        ran = time.perf_counter_ns()
        return ProcessCost((loaded - start) / 1e6, (ran - before) / 1e6, peak_memory_bytes())


def answer(cost: ProcessCost, stream: Any) -> None:
    """Write a cost so that ``measure_in_child`` finds it, whatever a runtime printed before."""
    stream.write("\n" + ANSWER_MARK + json.dumps(asdict(cost)) + "\n")
    stream.flush()


def peak_memory_bytes() -> int | None:
    """Return the largest resident set that this process had, None where the system does not tell.

    ``VmHWM`` and not ``ru_maxrss`` on Linux: the latter starts at the size that the parent had when it forked.
    """
    try:
        for line in PROC_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    import psutil

    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    if peak is not None:
        return int(peak)
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)


def _exit_text(returncode: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"its process was ended by {name}{last}"
    return f"its process ended with code {returncode} and no answer{last}"
