"""The command line: one thin file per command; nothing heavy is imported before a command needs it."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 error, 2 usage, 3 gate failed, 130 interrupted."""
    from vitdeploy.cli.shell import run_app

    return run_app(arguments)
