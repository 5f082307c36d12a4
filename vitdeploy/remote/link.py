"""One connection to a host: the system's own ``ssh``, with the user's keys, configuration and known_hosts.

Nothing is asked for (``BatchMode``) and no host is trusted that is not known (``StrictHostKeyChecking``), whatever the
user's configuration says.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, cast

from vitdeploy.errors import RemoteError, UsageError
from vitdeploy.remote import board
from vitdeploy.text import one_line, size_text

OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
    "RequestTTY=no",
    "RemoteCommand=none",
)
SSH_FAILED = 255
CHUNK = 1 << 18
NEWEST_FIRST = tuple(f"python3.{minor}" for minor in range(15, 9, -1))

# runs under any login shell's `sh`; the board's own python3 comes first, because TensorRT's bindings are in it
_CHOOSE = """\
cache="${{VITDEPLOY_CACHE:-${{XDG_CACHE_HOME:-$HOME/.cache}}/vitdeploy}}"
for python in "$cache/venv/bin/python" python3 {others}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null >/dev/null 2>&1; then
        exec "$python" -c 'import base64; exec(base64.b64decode("{program}"))'
    fi
done
printf '{mark}{{"error": "python", "version": "%s"}}\\n' "$(python3 --version 2>&1 | head -n 1 | tr -d '"\\\\')"
"""


class BrokenLinkError(Exception):
    """A connection that stood has ended before its time; what was done until then is kept."""


class Connection:
    """One request on a host: what is written goes to ``board``'s input, what is read comes from its output."""

    def __init__(self, host: str, process: subprocess.Popen[bytes]) -> None:
        self._host = host
        self.incoming = cast(BinaryIO, process.stdout)
        self.outgoing = cast(BinaryIO, process.stdin)

    def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            BrokenLinkError: The link is broken, or the host has given up, which its answer then says.
        """
        try:
            self.outgoing.write(data)
            self.outgoing.flush()
        except OSError as error:
            raise BrokenLinkError from error

    def answer(self) -> dict[str, Any]:
        """Return the next line that the host answers with.

        Raises:
            BrokenLinkError: The link is broken.
            RemoteError: The host refuses, or cannot.
        """
        line = self.incoming.readline()
        if not line.endswith(b"\n"):
            raise BrokenLinkError
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise _refusal(self._host, found)
        return found

    def event(self) -> tuple[dict[str, Any], int]:
        """Return the next event of a job, and the size of its line.

        Raises:
            BrokenLinkError, RemoteError: As ``answer``.
        """
        line = self.incoming.readline()
        if not line.endswith(b"\n"):
            raise BrokenLinkError
        found: dict[str, Any] = json.loads(line)
        if "event" not in found:
            raise _refusal(self._host, found)
        return found, len(line)


@contextmanager
def connect(host: str, request: Mapping[str, Any]) -> Iterator[Connection]:
    """Connect, hand over one request, and yield the connection behind the mark that begins the answer.

    Raises:
        BrokenLinkError: The link broke after it stood.
        RemoteError: There is no way in: no ssh, no such host, an unknown key, no Python. Trying again would not help.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise RemoteError("ssh is not installed here: on Debian and Ubuntu 'sudo apt-get install openssh-client'")
    options = [f"-o{option}" for option in OPTIONS]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [ssh, "-T", *options, "--", host, command_line()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # an interrupt is ours to handle: ssh would die of it first
        )
        connection = Connection(host, process)
        try:
            with suppress(BrokenLinkError):  # what stands against it follows from what ssh says
                connection.send(json.dumps(request).encode() + b"\n")
            if not _skip_to_mark(connection.incoming):
                process.wait()
                raise _no_entry(host, process.returncode, _tail(complaints))
            yield connection
        finally:
            process.kill()
            process.wait()
            for stream in (connection.incoming, connection.outgoing):
                with suppress(OSError):  # what is left in the buffer of a broken link
                    stream.close()


def command_line() -> str:
    """Return what the host's login shell runs: one line without quotes inside, so that any shell takes it."""
    script = _CHOOSE.format(
        others=" ".join(NEWEST_FIRST),
        program=_base64(inspect.getsource(board)),
        mark=board.MARK.decode().replace("\n", "\\n"),
    )
    return f"""sh -c 'eval "$(echo {_base64(script)} | base64 -d)"'"""


def check_host(host: str) -> str:
    """Return the name of a host, as ssh takes it.

    Raises:
        UsageError: It is empty, or would be an option or several words.
    """
    if not host or host.startswith("-") or re.search(r"\s|[\x00-\x1f]", host):
        raise UsageError(f"the host is {host!r}, expected USER@HOST, or a name of your ssh configuration")
    return host


def _skip_to_mark(incoming: IO[bytes]) -> bool:
    """Read past what the start-up files of a shell print; return whether the mark came."""
    return any(line.endswith(board.MARK) for line in iter(incoming.readline, b""))


def _no_entry(host: str, code: int, complaint: str) -> Exception:
    """Return why no request was served: the commonest reasons in words that say what to do."""
    name, text = shlex.quote(host), complaint.lower()
    if "identification has changed" in text:
        return RemoteError(
            f"the host key of {host!r} has changed since it was last known: another machine may pose as it; "
            "where the change is right, remove the old key with 'ssh-keygen -R HOST'"
        )
    if "host key verification failed" in text or "host key is known for" in text:
        return RemoteError(
            f"the host key of {host!r} is not known here: connect once with 'ssh {name}' and compare its fingerprint"
        )
    if "permission denied" in text:
        return RemoteError(
            f"{host!r} accepts none of your keys: load the right one into ssh-agent, or 'ssh-copy-id {name}'"
        )
    reason = one_line(complaint.splitlines()[-1]) if complaint else f"ssh ended with exit code {code}"
    if code == SSH_FAILED:
        return UnreachableError(f"cannot reach {host!r}: {reason}; 'ssh {name}' shows more")
    return RemoteError(f"{host!r} runs no command: {reason}; 'ssh {name} true' has to work")


class UnreachableError(RemoteError):
    """The host does not answer: worth another try where it did before."""


def _refusal(host: str, answer: Mapping[str, Any]) -> Exception:
    kind = answer["error"]
    if kind == "cut":
        return BrokenLinkError()
    if kind == "python":
        there = answer["version"] or "no python3"
        return RemoteError(f"{host!r} has {there}: vitdeploy needs Python 3.10 or newer there, as JetPack 6 has it")
    if kind == "space":
        return RemoteError(
            f"the disk of {host!r} has {size_text(answer['free'])} left in {answer['path']!r} and the files need "
            f"{size_text(answer['lacking'])}: make room there; nothing was shipped"
        )
    if kind == "full":
        return RemoteError(f"the disk of {host!r} is full: make room there and run the same command again")
    if kind == "digest":
        return RemoteError(f"a file arrived damaged on {host!r} and was removed there: run the same command again")
    if kind == "gone":
        return RemoteError(f"the job is no longer on {host!r}: run the same command again")
    path = f" {answer['path']!r}" if answer.get("path") else ""
    return RemoteError(f"{host!r} cannot do it: {one_line(str(answer.get('text')))}{path}")


def _tail(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace").strip()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
