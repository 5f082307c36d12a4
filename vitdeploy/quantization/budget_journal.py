"""What a search for a budget has measured so far, one line each, so that one that was killed goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import write_atomically


class BudgetJournal:
    """A hidden file beside an output; ``key`` says what is searched, and lines of anything else are ignored.

    Opening it reads what is there; a last line that a kill cut off is left out.
    """

    def __init__(self, output: Path, key: str) -> None:
        self._path = output.with_name(f".{output.name}.budget.jsonl")
        self._key = key
        self._known: dict[tuple[str, str], Any] = dict(self._read())
        self.restored = len(self._known)
        self._is_clean = False

    def get(self, what: str, identity: str) -> Any:
        """Return what was put under these names; None where nothing was."""
        return self._known.get((what, identity))

    def put(self, what: str, identity: str, value: Any) -> None:
        """Keep a JSON value; it is on the disk when this returns."""
        self._known[what, identity] = value
        if not self._is_clean:  # the last line of an earlier run may be half of one
            write_atomically(self._path, "".join(map(self._line, self._known)))
            self._is_clean = True
            return
        with self._path.open("a", encoding="utf8") as stream:
            stream.write(self._line((what, identity)))

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def _line(self, name: tuple[str, str]) -> str:
        return json.dumps({"key": self._key, "what": name[0], "of": name[1], "value": self._known[name]}) + "\n"

    def _read(self) -> list[tuple[tuple[str, str], Any]]:
        try:
            lines = self._path.read_text("utf8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["key"] == self._key:
                    found.append(((str(entry["what"]), str(entry["of"])), entry["value"]))
            except (ValueError, KeyError, TypeError):
                continue
        return found
