"""A headless Chromium, driven through DevTools over a pipe: no driver, no port, no package."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60.0


def find_browser() -> str | None:
    """Return a Chromium or Chrome: ``$CHROMIUM``, else the first on the PATH."""
    named = os.environ.get("CHROMIUM")
    return named if named else next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """One tab, and everything that it said since it was opened."""

    to_browser: int
    from_browser: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0
    _buffer: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Read until an event of that name has come."""
        deadline = time.monotonic() + TIMEOUT_S
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read(deadline))

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["text"])
        return result["result"].get("value")

    def of(self, *methods: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of these names so far."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {TIMEOUT_S:g} s")
            data = os.read(self.from_browser, 1 << 16)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def open_page(browser: str, file: Path) -> Iterator[Page]:
    """Open a file in a fresh browser; console, log and network are recorded from the start.

    Chromium reads DevTools commands from file descriptor 3 and answers on 4.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-browser-", ignore_cleanup_errors=True) as profile:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        quiet = os.open(os.devnull, os.O_RDWR)
        # first out of the way of 3 and 4, then onto them; free numbers, since a process of many tests has many open
        high = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 10) for handle in (to_read, from_write)]
        process = os.posix_spawn(
            browser,
            [browser, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            {**os.environ, "HOME": profile},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
                *((os.POSIX_SPAWN_DUP2, quiet, handle) for handle in (0, 1, 2)),
            ],
            setpgroup=0,
        )
        for handle in (to_read, from_write, quiet, *high):
            os.close(handle)
        page = Page(to_write, from_read)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Runtime", "Log", "Network", "Page"):
                page.call(f"{domain}.enable")
            page.call("Page.navigate", url=file.resolve().as_uri())
            page.wait_for("Page.loadEventFired")
            yield page
        finally:
            for handle in (to_write, from_read):
                os.close(handle)
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
