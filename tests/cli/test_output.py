"""What commands print: JSON that is JSON, and nothing that a terminal would act on."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from rich.table import Table

from vitdeploy.cli import main, output
from vitdeploy.errors import DataError
from vitdeploy.records import Check, ModelSpec
from vitdeploy.terminal_progress import LogProgress, TerminalProgress

EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egpj.exe\nnext\r\u2028"
ACTIVE = {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\u2028"}
SHOWN = r"\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egpj.exe\nnext\r\u2028"


@dataclass(frozen=True)
class Thing:
    path: Path
    values: Any
    check: Check


def test_records_numbers_and_paths_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check(name="c", status="passed", value=math.inf)
    output.print_json([Thing(Path("a/b"), {"n": np.float32(1.5), "m": np.arange(3), 1: math.nan}, check), check])
    expected = {"name": "c", "status": "passed", "value": None, "limit": None, "unit": "", "detail": ""}
    assert json.loads(capsys.readouterr().out) == [
        {"path": "a/b", "values": {"n": 1.5, "m": [0, 1, 2], "1": None}, "check": expected},
        expected,
    ]


def test_json_has_escapes_and_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({EVIL: ModelSpec(family="vit", name=EVIL)})
    text = capsys.readouterr().out
    assert not ACTIVE & set(text)
    assert json.loads(text)[EVIL]["name"] == EVIL


def test_lines_and_tables_have_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(EVIL)
    output.print_table(["name", EVIL], [[EVIL, "1"], ["short", "2"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SHOWN
    assert len(lines) == 4
    assert len(set(map(len, lines[1:]))) == 1


@pytest.mark.parametrize("colour", [False, True])
def test_no_line_of_a_table_ends_in_blanks(
    colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if colour else "NO_COLOR", "1")
    table = Table("name", "a longer head", caption="[dim]a caption[/dim]", caption_justify="left", box=None)
    table.add_row("[bold]x[/bold]", "y")
    output.print_rich(table)
    output.print_table(["name", "also called"], [["vit", ""], ["a longer name", "x"]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert [line for line in lines if line != line.rstrip()] == []


def test_blanks_among_codes_of_colours_go_and_the_codes_stay() -> None:
    text = "\x1b[1mTop-1\x1b[0m\x1b[2m \x1b[0m  \nrow  one\x1b[0m \n"
    assert output.without_blanks(text) == "\x1b[1mTop-1\x1b[0m\x1b[2m\x1b[0m\nrow  one\x1b[0m\n"


def test_all_tables_go_the_way_that_leaves_no_blanks() -> None:
    """``print_rich`` and ``print_table`` alone write tables: nothing else of a command has a console for stdout."""
    package = Path(output.__file__).parent.parent
    users = {path.name for path in package.rglob("*.py") if "Console(" in path.read_text("utf8")}
    assert users == {"output.py", "terminal_progress.py"}


def test_checks_at_several_batches_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def at(batch: int, value: float, status: Literal["passed", "failed"] = "passed", of: str = "PyTorch") -> Check:
        name = f"logits against {of}, batch {batch}"
        return Check(name=name, status=status, value=value, limit=1e-4, unit="of the logits' range")

    checks = [at(1, 2e-7), at(2, 3e-7), at(5, 1e-7), at(1, 1e-7, of="its file"), Check(name="digest", status="passed")]
    for check in output.one_of_each([*checks, at(8, 0.1, "failed")]):
        output.print_line(f"{check.name}: {output.check_words(check)}")
    assert capsys.readouterr().out.splitlines() == [
        "logits against PyTorch, batch 1, 2 and 5: passed: 3e-07 of the logits' range (limit 0.0001)",
        "logits against its file, batch 1: passed: 1e-07 of the logits' range (limit 0.0001)",
        "digest: passed",
        "logits against PyTorch, batch 8: failed: 0.1 of the logits' range (limit 0.0001)",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (1.0, "of the images", "100.00 % of the images"),
        (51.12, "dB", "51.12 dB"),
        (2e-6, "of the range", "2e-06 of the"),
    ],
)
def test_a_share_of_images_is_per_cent(value: float, unit: str, words: str) -> None:
    assert words in output.check_words(Check(name="agreement", status="passed", value=value, unit=unit))


@pytest.mark.parametrize(("terminal", "lines"), [(True, 3), (False, 1)])
def test_a_terminal_gets_sentences_in_lines_of_its_width(
    terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    output.print_wrapped("vit-with-a-name.onnx is fastest. " * 6)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert not terminal or max(map(len, printed)) <= 80
    assert " ".join(printed).count("vit-with-a-name.onnx is fastest.") == 6


def test_what_several_stages_have_to_say_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = output.make_progress()
    for text in ("photos: left out are 1 .txt", "export: fresh", "photos: left out are 1 .txt"):
        progress.note(text)
    assert capsys.readouterr().err.splitlines() == ["photos: left out are 1 .txt", "export: fresh"]


@pytest.mark.parametrize(("columns", "shown"), [(25, 3), (24, 2), (17, 2), (16, 1), (2, 1)])
def test_a_table_leaves_out_the_columns_that_a_terminal_has_no_room_for(
    columns: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    head = ["model", "parameters", "also"]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    assert output.print_table(head, [["vit", "22.1", "DeiT-S"]]) == head[shown:]
    assert [line.split() for line in terminal.getvalue().splitlines()] == [
        head[:shown],
        ["vit", "22.1", "DeiT-S"][:shown],
    ]


def test_a_table_in_a_log_has_all_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    assert output.print_table(["model", "also called"], [["vit", "DeiT-S"]]) == []
    assert capsys.readouterr().out == "model  also called\nvit    DeiT-S\n"


def test_progress_has_escapes() -> None:
    log = io.StringIO()
    LogProgress(log).note(EVIL)
    assert log.getvalue() == SHOWN + "\n"
    drawn = io.StringIO()
    progress = TerminalProgress(drawn, force_terminal=True, width=200, color_system=None)
    with progress.task(EVIL, total=2) as task:
        task.describe(EVIL)
        progress.note(EVIL)
    assert SHOWN in drawn.getvalue()
    assert "\x1b]0" not in drawn.getvalue()


@pytest.mark.parametrize(
    "line", [["inspect", EVIL], ["predict", EVIL, EVIL], ["bench", EVIL, "--data", EVIL], ["models", EVIL], [EVIL]]
)
def test_errors_are_one_line_with_escapes(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert not ACTIVE & set(err)


def test_an_error_whose_text_has_them_is_shown_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DataError(f"runtime says {EVIL}")

    monkeypatch.setattr("vitdeploy.inspect", fail)
    assert main(["inspect", "x"]) == 1
    assert not ACTIVE & set(capsys.readouterr().err)


def test_names_of_files_and_classes_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name in ("cat\x1b[31m", "dog\nnext"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(40):
            image = Image.fromarray(np.full((4, 4, 3), 2 * index + name.startswith("cat"), np.uint8))
            image.save(tmp_path / "photos" / name / f"{index}.png")
    os.chdir(tmp_path)
    assert main(["calibration", "make", "photos", "--samples", "32", "-o", "set\x1b[2J"]) == 0
    assert main(["calibration", "show", "set\x1b[2J"]) == 0
    assert main(["calibration", "check", "set\x1b[2J", "--against", "photos"]) == 0
    out, err = capsys.readouterr()
    assert not ACTIVE & set(out + err)
    assert r"cat\x1b[31m 16, dog\nnext 16" in out


def test_no_command_prints_past_the_one_place() -> None:
    """Every command prints by ``cli.output``; help, version and the recipe are texts of the package."""
    folder = Path(output.__file__).parent
    allowed = {"app.py": {"context.get_help()", "f'vitdeploy {__version__}'"}, "run.py": {"default_text()"}}
    for file in folder.glob("*.py"):
        if file.name in ("output.py", "shell.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.echo", "print", "click.echo"):
                assert ast.unparse(node.args[0]) in allowed.get(file.name, set()), f"{file.name}:{node.lineno}"


@pytest.mark.parametrize("text", ["one two three " * 20, f"wrote {'a-long-name/' * 12}x.onnx here", "short"])
def test_notes_on_a_terminal_break_between_words_and_no_name_is_broken(text: str) -> None:
    stream = io.StringIO()
    TerminalProgress(stream, width=40, force_terminal=True).note(text)
    lines = stream.getvalue().splitlines()
    assert [word for line in lines for word in line.split()] == text.split()
    assert all(len(line) <= 40 or " " not in line for line in lines)
