"""What surrounds every command: exit codes, one line per error, what is loaded, completion, progress."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

import vitdeploy
from vitdeploy.cli import main, options, shell
from vitdeploy.errors import DataError, GateError, UsageError
from vitdeploy.terminal_progress import LogProgress, TerminalProgress

pytestmark = pytest.mark.slow

COMMANDS = (
    "run",
    "train",
    "export",
    "quantize",
    "build",
    "bench",
    "compare",
    "diff",
    "calibration",
    "calibration make",
    "calibration show",
    "calibration check",
    "predict",
    "inspect",
    "verify",
    "models",
    "doctor",
)
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "matplotlib")


def loaded_after(arguments: list[str], names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return what a command prints and which of ``names`` it has loaded in a fresh process."""
    program = (
        "import sys, json; from vitdeploy.cli import main; code = main(sys.argv[2:]); "
        "print(json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))"
    )
    command = [sys.executable, "-c", program, json.dumps(names), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return done.stdout, loaded


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", os.fsdecode(b"\xff.onnx")],
        ["convert", "vit", "--weights", os.fsdecode(b"caf\xe9.pth"), "-o", "new.safetensors"],
        ["calibration", "make", "digits", "-o", os.fsdecode(b"\xff")],
        ["predict", os.fsdecode(b"\xff.onnx"), "image.png"],
        ["predict", "model.onnx", "image.png", "--parquet", os.fsdecode(b"\xff.parquet")],
    ],
)
def test_names_that_are_no_text_are_refused_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert re.fullmatch(
        r"error: the name '.*\\x(ff|e9).*' is no UTF-8: rename the file or folder\n", capsys.readouterr().err
    )
    assert not any(tmp_path.iterdir())


def test_help_loads_nothing_heavy() -> None:
    text, loaded = loaded_after(["--help"], (*HEAVY, "pydantic"))
    assert loaded == []
    for command in COMMANDS:
        assert command.split()[0] in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    text, loaded = loaded_after([*command.split(), "--help"], HEAVY)
    assert loaded == []
    assert f"vitdeploy {command}" in text


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, vitdeploy; print([name for name in sys.argv[1:] if name in sys.modules])"
    command = [sys.executable, "-c", program, *HEAVY, "pydantic", "typer"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitdeploy {vitdeploy.__version__}\n"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "quantize" in capsys.readouterr().out


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_choices(shell_name: str) -> None:
    def complete(words: str) -> str:
        environment = {
            **os.environ,
            "_VITDEPLOY_COMPLETE": f"complete_{shell_name}",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        done = subprocess.run([sys.executable, "-m", "vitdeploy"], env=environment, capture_output=True, text=True)
        return done.stdout

    assert "quantize" in complete("vitdeploy qu")
    assert "bench" not in complete("vitdeploy qu")
    assert "int8-weight-only" in complete("vitdeploy quantize --precision int8")
    assert "vit_tiny_patch16_224" in complete("vitdeploy train digits --model vit_tiny")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (DataError("no images in 'x'"), "no images in 'x'", 1),
        (UsageError("two\n  lines"), "two lines", 2),
        (GateError("too much"), "too much", 3),
        (OSError(errno.ENOSPC, "No space", "/x/y"), "the disk is full: '/x/y' (--debug shows where)", 1),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "Permission denied: 'f' (--debug shows where)", 1),
        (MemoryError(), "out of memory: use a smaller batch or fewer --samples (--debug shows where)", 1),
        (
            ModuleNotFoundError("no", name="timm.layers"),
            "this needs 'timm', which is not installed: pip install 'vitdeploy[torch]'",
            1,
        ),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            "unexpected ModuleNotFoundError: No module named 'x'",
            1,
        ),
        (ZeroDivisionError("division"), "unexpected ZeroDivisionError: division (--debug shows the traceback)", 1),
        (AssertionError(), "unexpected AssertionError (--debug shows the traceback)", 1),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    error: Exception, line: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(pattern: str) -> None:
        raise error

    monkeypatch.setattr(vitdeploy, "list_models", fail)
    assert main(["models"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {line}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("export vit.pth -o x.onnx --num-classes 7", "--model-arg num_classes=VALUE --reset-head does that"),
        ("convert vit.pth -o x.safetensors --img-size=64", "--model-arg image_size=VALUE does that"),
        ("train digits -o x.safetensors --drop-path 0.1", "--set drop_path=VALUE does that"),
        ("run --epochs 3", "--set train.options.epochs=VALUE does that"),
        ("run --max-drop 1", "--set bench.max_drop=VALUE does that"),
        ("quantize x.onnx -o y.onnx --int8", "--precision int8 does that"),
        ("train digits -o x.safetensors --num-classes 7", "No such option: --num-classes (Possible"),
        ("bench x.onnx --nonsense", "No such option: --nonsense"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_ours(
    line: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert hint in capsys.readouterr().err


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "inspect", "nowhere"], ["inspect", "nowhere", "--debug"]):
        assert main(arguments) == 1
        errors = capsys.readouterr().err
        assert "Traceback (most recent call last)" in errors
        assert errors.endswith("error: there is no file 'nowhere'\n")


def test_debug_behind_two_dashes_is_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--", "--debug"]) == 1
    assert capsys.readouterr().err == "error: there is no file '--debug'\n"


def test_a_warning_is_one_line_and_shown_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitdeploy import errors

    def warned() -> list[object]:
        for _ in range(2):
            errors.warn("the graph is far\x1b[31m from the original", errors.FidelityWarning)
        errors.warn("another", errors.SeenDataWarning)
        return []

    monkeypatch.setattr("vitdeploy.stages.doctor.doctor", warned)
    monkeypatch.setitem(vars(vitdeploy), "doctor", warned)
    before = warnings.showwarning
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == ("warning: the graph is far\\x1b[31m from the original\nwarning: another\n")
    assert warnings.showwarning is before


@pytest.mark.parametrize(("terminals", "shown"), [((True, True), True), ((True, False), False), ((False, True), False)])
def test_a_verdict_does_not_repeat_what_the_same_terminal_has_shown(
    monkeypatch: pytest.MonkeyPatch, terminals: tuple[bool, bool], shown: bool
) -> None:
    """Where stdout or stderr goes elsewhere, its reader has not seen the warning, or needs the whole verdict."""
    from vitdeploy import errors

    advice = "bench again with vd.BenchOptions(rounds=30)"
    found: dict[str, bool] = {}

    def warned() -> list[object]:
        for stream, is_terminal in zip((sys.stdout, sys.stderr), terminals, strict=True):
            monkeypatch.setattr(stream, "isatty", lambda value=is_terminal: value)
        found["before"] = shell.was_shown(advice)
        errors.warn(advice, errors.FidelityWarning)
        found.update({text: shell.was_shown(text) for text in (advice, "another sentence")})
        return []

    monkeypatch.setitem(vars(vitdeploy), "doctor", warned)
    assert main(["doctor"]) == 0
    assert found == {"before": False, advice: shown, "another sentence": False}
    assert not shell.was_shown(advice), "nothing is shown outside of a command"


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(pattern: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vitdeploy, "list_models", interrupt, raising=False)
    assert main(["models"]) == shell.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m vitdeploy models | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("name")


def test_the_choices_are_those_of_the_records() -> None:
    from vitdeploy.datasets import Split
    from vitdeploy.quantization.plan import Profile
    from vitdeploy.quantization.request import Method
    from vitdeploy.quantization.search import Effort
    from vitdeploy.records import Precision, Target, Task
    from vitdeploy.records.report import DropBy

    assert get_args(options.Precision) == get_args(Precision)
    assert get_args(options.Target) == get_args(Target)
    assert get_args(options.Split) == get_args(Split)
    assert set(get_args(options.Task)) == set(get_args(Task))
    assert get_args(options.DropBy) == get_args(DropBy)
    assert get_args(options.Profile) == get_args(Profile)
    assert get_args(options.Effort) == get_args(Effort)
    assert get_args(get_args(options.Method)[0]) == get_args(Method)


def test_an_extra_that_an_error_names_is_declared() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    for extra in shell.EXTRA_OF_MODULE.values():
        assert f"\n{extra} = [" in text


# --- progress


def clock(times: list[float]) -> Callable[[], float]:
    return lambda: times.pop(0) if len(times) > 1 else times[0]


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    stream = io.StringIO()
    progress = LogProgress(stream, clock([0.0, 3.0, 12.0, 15.0, 30.0]))
    with progress.task("train", total=4) as task:
        task.advance()  # after 3 s: too early
        task.advance()  # after 12 s
        task.describe("loss 0.1")  # after 15 s: too early
    progress.note("done")
    assert stream.getvalue() == "train: 50 % after 12 s, about 12 s left\ntrain: done in 30 s\ndone\n"


def test_a_log_says_nothing_of_what_is_quick() -> None:
    stream = io.StringIO()
    with LogProgress(stream, clock([0.0, 1.0])).task("quick") as task:
        task.advance()
    assert stream.getvalue() == ""


def test_bars_vanish_and_notes_stay() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream, force_terminal=True, width=80)
    with progress.task("outer [red]", total=2) as outer:
        progress.note("kept [bold]as it is[/bold]")
        with progress.task("inner") as inner:
            inner.describe("layer 3")
            inner.advance()
        outer.advance(2)
    text = stream.getvalue()
    assert "kept [bold]as it is[/bold]" in text
    assert "outer [red]" in text


@pytest.mark.parametrize("command", ["models", "models --json", "--help"])
def test_what_a_full_device_does_not_take_is_one_line(command: str) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no file
        words = [sys.executable, "-m", "vitdeploy", *command.split()]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: the disk is full (--debug shows where)"]
