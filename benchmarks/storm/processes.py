"""One command in a forked process: its limits, how it is killed, and what it took."""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, PATIENCE, MEMORY = 60, 240, 2 << 30
"""Seconds of processor time; seconds in which none passes; bytes."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    code: Its exit code, or the negative number of the signal that ended it.
    seconds: Of processor time, that of its own processes included.
    memory: The most that it held, in bytes; what it shares with the storm counts.
    operations: How many operations on files it did, where they were counted.
    excess: What it took too much of; "" for nothing.
    """

    code: int
    seconds: float
    memory: int
    operations: int = 0
    excess: str = ""


def run_command(
    command: str,
    folder: Path,
    *,
    kill_s: float | None = None,
    operation: int | None = None,
    count: bool = False,
    full_output: bool = False,
) -> Ended:
    """Run a command in ``folder / 'w'``, its output beside that, and wait for its end.

    Args:
        command: Words without blanks in them.
        folder: The case's folder.
        kill_s: After so many seconds of its processor time the system ends it by SIGPROF: nothing handles that, so it
            is as if it were killed by SIGKILL, and comes at its time however busy the machine is.
        operation: The number of the operation on files before which it kills itself.
        count: Whether operations on files are counted.
        full_output: Its stdout is a device without room.
    """
    pid = os.fork()
    if not pid:
        _be_command(command, folder, kill_s, operation, count, full_output)
    with suppress(OSError):
        os.setpgid(pid, pid)  # as the child does itself, whichever comes first
    memory, spent, moved, excess = 0, 0.0, time.monotonic(), ""
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        memory = max(memory, _memory(pid))
        if (now := _cpu_seconds(pid)) != spent:
            spent, moved = now, time.monotonic()
        if memory > MEMORY:
            excess = f"took more than {MEMORY >> 30} GB"
        elif time.monotonic() - moved > PATIENCE:
            excess = f"did nothing for {PATIENCE} s"
        if excess:
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        excess = f"took more than {SECONDS} s"
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it has started and left behind
    counted = folder / "operations"
    operations = int(counted.read_text()) if count and counted.exists() else 0
    return Ended(code, usage.ru_utime + usage.ru_stime, memory, operations, excess)


def _be_command(
    command: str, folder: Path, kill_s: float | None, operation: int | None, count: bool, full_output: bool
) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(folder / "w")
        os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = os.environ["TMPDIR"] = str(folder)
        for number, name in ((1, "/dev/full" if full_output else folder / "stdout"), (2, folder / "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        if count or operation is not None:
            counter = OperationCounter(folder / "w", operation)
            sys.addaudithook(counter)
        from vitdeploy.cli import main

        if kill_s is not None:
            signal.setitimer(signal.ITIMER_PROF, kill_s)
        code = main(command.split())
        sys.stderr.flush()
        if count:
            Path(folder, "operations").write_text(str(counter.count))
        sys.stdout.flush()
    except OSError:
        code = 120  # as Python itself where stdout cannot be flushed at the end
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class OperationCounter:
    """An audit hook that counts the operations on files in a folder that change something there.

    Kills the process, and those that it has started, before one of them: writing of what libraries write themselves is
    not seen, opening and renaming of it is.
    """

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in self.CHANGES:
            return
        if isinstance(arguments[0], int):
            return
        if os.path.join(self.folder, os.fsdecode(arguments[0])).startswith(self.folder):  # noqa: PTH118 - in a hook
            self.count += 1
            if self.count == self.last:
                os.killpg(0, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def load_once() -> None:
    """Import all that commands import: forked processes need not, and are of one state of the code."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import timm  # noqa: F401
    import torch

    import vitdeploy

    for module in pkgutil.walk_packages(vitdeploy.__path__, "vitdeploy."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # of a library that is not installed
                importlib.import_module(module.name)
    torch.set_num_threads(1)
