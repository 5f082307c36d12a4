"""axe, the accessibility checker of Deque, as the npm registry has it: fetched once by a run of the tests, not kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from browser import Page

VERSION = "4.10.3"
SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"
TIMEOUT_S = 120
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


class NoRegistryError(Exception):
    """The checker could not be had, and why."""


def fetch_axe(folder: Path) -> str:
    """Return the source of axe, which ``npm pack`` takes from the registry that npm is configured for.

    Raises:
        NoRegistryError: There is no npm, or no registry answers.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise NoRegistryError("there is no npm on the PATH, which fetches axe-core")
    command = [npm, "pack", f"axe-core@{VERSION}", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise NoRegistryError(f"no npm registry answered within {TIMEOUT_S} s") from error
    archives = list(folder.glob("axe-core-*.tgz"))
    if done.returncode or not archives:
        raise NoRegistryError(f"npm could not fetch axe-core: {' '.join(done.stderr.split())[:200]}")
    with tarfile.open(archives[0]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        data = member.read()
    assert hashlib.sha256(data).hexdigest() == SHA256, f"axe-core {VERSION} is not the one that was reviewed"
    return data.decode()


def violations(page: Page, axe: str) -> list[str]:
    """Return what axe finds on the page as it is shown now: rule, advice and the places, a line each."""
    page.evaluate(f"{axe}\n;0")
    options = json.dumps({"runOnly": RULES, "resultTypes": ["violations"]})
    found: list[dict[str, Any]] = page.call(
        "Runtime.evaluate",
        expression=f"axe.run(document, {options}).then(result => result.violations)",
        awaitPromise=True,
        returnByValue=True,
    )["result"]["value"]
    return [
        f"{one['id']}: {one['help']}: {'; '.join(node['html'][:120] for node in one['nodes'][:4])}" for one in found
    ]
