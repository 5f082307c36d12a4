"""What surrounds every command: exit codes, and errors as one plain line on stderr."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from vitdeploy.cli.flags import hint_for, in_flags, set_command
from vitdeploy.errors import ArtifactError, FidelityWarning, VitdeployError
from vitdeploy.text import is_text, name_text, printable

INTERRUPTED = 130

EXTRA_OF_MODULE = {
    "torch": "torch",
    "torchvision": "torch",
    "timm": "torch",
    "lightning_fabric": "torch",
    "tensorboard": "torch",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "openvino": "openvino",
    "cuda": "cuda13",
    "mlflow": "mlflow",
    "pyarrow": "parquet",
    "cryptography": "signing",
}


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    ``--debug`` may stand anywhere: it shows Python's warnings and the traceback of an error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    rest = [argument for argument in own if argument != "--debug"] + words[len(own) :]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a file's name need not be valid text
    if not debug and not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())  # else Python prints what libraries log, as they say it
    with warnings.catch_warnings():
        if not debug and not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", FidelityWarning)
            warnings.showwarning = _OneLine()
        return _run(rest, debug=debug)


def _require_text(arguments: list[str]) -> None:
    """Refuse names that are no UTF-8, which records and libraries cannot keep; ``predict`` reads images by any name."""
    for argument in arguments if arguments[:1] != ["predict"] else ():
        if not is_text(argument):
            raise ArtifactError(f"the name '{name_text(argument)}' is no UTF-8: rename the file or folder")


def _run(arguments: list[str], *, debug: bool) -> int:
    set_command(arguments)
    try:
        _require_text(arguments)
        from vitdeploy.cli.app import app

        code = app(args=arguments, prog_name="vitdeploy", standalone_mode=False)
        sys.stdout.flush()  # what cannot be printed is an error like others
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        _drop_unprinted()
        return exit_code_of(error)
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _drop_unprinted() -> None:
    """Drop what stdout cannot take, of which Python would speak once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _OneLine:
    """Shows each warning once, as one line on stderr, above the bars that may be drawn there."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def has_shown(self, text: str) -> bool:
        """Return whether a warning with this text was shown."""
        return printable(in_flags(text)) in self._shown

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = printable(in_flags(str(message)) if issubclass(category, FidelityWarning) else str(message))
        if text not in self._shown:
            self._shown.add(text)
            print(f"warning: {text}", file=sys.stderr)


def was_shown(warning: str) -> bool:
    """Return whether the user has this sentence of the package before the eyes: as a warning on the same terminal."""
    shows = warnings.showwarning
    return isinstance(shows, _OneLine) and sys.stdout.isatty() and sys.stderr.isatty() and shows.has_shown(warning)


def exit_code_of(error: Exception) -> int:
    """Return 1, 2 or 3: our errors and the argument parser's carry theirs, everything else is 1."""
    if isinstance(error, VitdeployError) or is_usage_error(error):
        return int(getattr(error, "exit_code", 1))
    return 1


def is_usage_error(error: Exception) -> bool:
    """Return whether the argument parser raised it (typer's own copy of click, or click, depending on its version)."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def one_line(error: Exception) -> str:
    """Return what went wrong in one line, with the way to see more where the error is not one of ours."""
    if isinstance(error, VitdeployError):
        text = in_flags(str(error))
    elif is_usage_error(error):
        text = _usage_line(error)
    elif isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRA_OF_MODULE:
        module = (error.name or "").split(".")[0]
        extra = EXTRA_OF_MODULE[module]
        text = f"this needs {module!r}, which is not installed: pip install 'vitdeploy[{extra}]'"
    elif isinstance(error, MemoryError):
        text = "out of memory: use a smaller batch or fewer --samples (--debug shows where)"
    elif isinstance(error, OSError):
        text = f"{_os_line(error)} (--debug shows where)"
    else:
        detail = f": {error}" if str(error) else ""
        text = f"unexpected {type(error).__name__}{detail} (--debug shows the traceback)"
    return printable(" ".join(text.split()))


def _usage_line(error: Exception) -> str:
    message = str(getattr(error, "format_message")()).rstrip(".").replace("Value error, ", "")  # noqa: B009 - two libraries, one shape
    problems = getattr(error.__cause__, "errors", None)
    if callable(problems) and (found := problems()) and repr(found[0].get("input")) not in message:
        message = f"{message}, got {found[0].get('input')!r}"
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "vitdeploy"
    unknown = getattr(error, "option_name", None)
    if isinstance(unknown, str) and context is not None and (hint := hint_for(unknown, context.command)):
        return f"No such option: {unknown}; {hint} does that (see '{where} --help')"
    return f"{message} (see '{where} --help')"


def _os_line(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full" + (f": {str(error.filename)!r}" if error.filename else "")
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {str(error.filename)!r}" if error.filename else reason
