from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sample_reports import build, everything, rows, timing

from vitdeploy.errors import ArtifactError
from vitdeploy.records import Report, sha256_of
from vitdeploy.report import measurement_tables, read_report, table, write_report
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.wording import ms_text


def _printed(report: Report, width: int = 100, *, beside: bool = False) -> str:
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(*(measurement_tables(report) if beside else [table(report)]), sep="\n")
    return capture.get()


class Balance(HTMLParser):
    """Collects tags that are opened and not closed, attributes, and the text."""

    VOID = frozenset({"meta", "link", "br", "wbr", "line", "rect", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_three_files_are_written_and_the_json_reads_back(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert sorted(file.name for file in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert read_report(page.parent) == read_report(page.parent / "report.json") == report


def test_what_was_not_measured_is_null_in_the_json_and_a_dash_for_people(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    raw = json.loads((tmp_path / "report.json").read_text())
    engine = next(row for row in raw["rows"] if row["name"] == "digits.fp16.engine")
    for key in (
        "top1",
        "top1_ci95",
        "delta_top1_pp",
        "agreement",
        "load_ms",
        "precision_by_layer",
        "energy_mj_per_image",
    ):
        assert engine[key] is None
    assert engine["timings"] == []
    assert raw["schema"] == 1
    line = next(line for line in (tmp_path / "report.md").read_text().splitlines() if "fp16.engine | TensorRT" in line)
    assert line.count("–") == 4


def test_the_table_fits_a_hundred_columns_and_holds_every_row(report: Report) -> None:
    text = _printed(report)
    for row in report.rows:
        assert row.name in text
        assert row.precision in text
    assert "built, not run" in text
    wide = _printed(report, 140)
    assert "98.67 [97.1, 99.4]" in wide
    assert "−0.22 [−1.25, +0.64]" in wide
    assert "6.68× [6.39, 6.91]" in wide


def test_below_each_other_a_batch_stands_on_the_line_of_its_time(report: Report) -> None:
    """Two forms of one table: where intervals go below their numbers, rows without an interval take fewer lines."""
    lines = _printed(report, 100).splitlines()
    assert any("speed-up" in line for line in lines[:6])  # the second form
    for row in report.rows:
        for measured in (one for one in row.timings if one.scope == "end_to_end"):
            start = next(index for index, line in enumerate(lines) if line.strip().startswith(row.name))
            number = ms_text(measured.p50_ms)
            line = next(line for line in lines[start:] if f" {number} " in line)
            assert re.search(rf" {measured.batch} +{re.escape(number)} ", line)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.+−%]+", text.lower()))


@pytest.mark.parametrize("width", [50, 60, 72, 80, 100, 140])
def test_at_any_width_no_name_number_or_word_is_cut(report: Report, width: int) -> None:
    text = _printed(report, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    assert _words(_printed(report, 1000)) - _words(text) <= {"artifact"}  # the head of the column of names
    text = re.sub(r"\s+", " ", text)
    for row in report.rows:
        assert row.name in text
    for number in ("[97.1, 99.4]", "[−1.25, +0.64]", "[6.39, 6.91]"):
        assert number in text
    assert "there is no NVIDIA GPU here" in text


def test_the_table_of_one_batch_has_no_batch_column(report: Report) -> None:
    one = report.model_copy(update={"conditions": report.conditions.model_copy(update={"batches": (1,)})})
    assert "Batch" not in _printed(one)
    assert "Batch" in _printed(report)


def test_the_table_prints_names_as_they_are(report: Report) -> None:
    strange = report.rows[0].model_copy(update={"name": "[red]x[/red] [1.0]"})
    assert "[red]x[/red] [1.0]" in _printed(report.model_copy(update={"rows": (strange,)}))


def test_the_page_is_well_formed_and_every_reference_in_it_exists(report: Report) -> None:
    parser = Balance()
    parser.feed(render_html(report))
    assert parser.open == []
    assert parser.wrong == []
    assert len(parser.ids) == len(set(parser.ids))
    referred = {part for name, value in parser.attributes if name == "aria-labelledby" for part in value.split()}
    assert referred <= set(parser.ids)


def test_the_page_asks_for_nothing_outside_itself(report: Report) -> None:
    page = render_html(report)
    parser = Balance()
    parser.feed(page)
    sources = [value for name, value in parser.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert sources == ["data:,"]
    assert "@import" not in page
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_names_and_reasons_are_escaped_on_the_page_and_in_markdown(report: Report) -> None:
    page, text = render_html(report), render_markdown(report)
    assert page.count("<script") == 1, "our own, which sorts tables"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert re.search(r"(?<!\\)<", text) is None
    assert r"\<script\>alert(1)\</script\>\|\_.onnx" in text


def test_every_table_in_markdown_has_the_same_number_of_cells_in_each_line(report: Report) -> None:
    blocks = [block for block in render_markdown(report).split("\n\n") if block.startswith("| ")]
    assert len(blocks) == 3
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1


def test_markdown_has_verdict_conditions_and_machine(report: Report) -> None:
    text = render_markdown(report)
    for expected in (
        *report.verdict[:2],
        "450 images",
        "PyTorch eager FP32 of digits.safetensors",
        "2 cores",
        "torch 2.15.0",
    ):
        assert expected in text


def test_a_report_in_which_nothing_was_measured_can_be_shown(report: Report, tmp_path: Path) -> None:
    engines = tuple(row for row in rows() if row.status == "built")
    empty = build(engines)
    write_report(empty, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Nothing was timed on this machine." in page
    assert "Nothing was timed on this machine." in (tmp_path / "report.md").read_text()
    assert "digits.fp16.engine" in _printed(empty)
    without = build(tuple(row.model_copy(update={"size_bytes": None}) for row in engines))
    assert "<figure" not in render_html(without)


def test_gpu_rows_have_their_own_plots_and_both_scopes(report: Report) -> None:
    engine = report.rows[3].model_copy(
        update={
            "status": "ok",
            "reason": "",
            "top1": 0.99,
            "top1_ci95": (0.97, 0.997),
            "inspected": True,
            "precision_by_layer": {"fp16": 48, "fp32": 3},
            "timings": (timing(0.061), timing(0.048, scope="device")),
        }
    )
    page = render_html(build((*report.rows[:3], engine)))
    assert "Top-1 accuracy over latency on the CPU, batch 1" in page
    assert "Top-1 accuracy over latency on the GPU, batch 1" in page
    assert "on the device" in page
    assert "48 fp16, 3 fp32" in page


def test_a_write_that_fails_leaves_the_old_report(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        write_report(report.model_copy(update={"model": "other"}), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def sealed(raw: dict[str, Any]) -> str:
    content = {name: value for name, value in raw.items() if name != "report_sha256"}
    return json.dumps({**content, "report_sha256": sha256_of(content)})


@pytest.mark.parametrize("change", ["number", "text", "row", "verdict", "byte"])
def test_a_report_that_was_edited_or_damaged_is_refused(report: Report, tmp_path: Path, change: str) -> None:
    write_report(report, tmp_path)
    file: Path = tmp_path / "report.json"
    raw = json.loads(file.read_text())
    if change == "number":
        raw["rows"][0]["top1"] = 0.5
    elif change == "text":
        raw["rows"][0]["name"] += " "
    elif change == "row":
        raw["rows"].pop()
    elif change == "verdict":
        raw["verdict"] = ["Ship it."]
    text = json.dumps(raw) if change != "byte" else file.read_text().replace('"p50_ms": ', '"p50_ms": 1', 1)
    file.write_text(text)
    with pytest.raises(ArtifactError, match="does not match its digest: it was edited or damaged") as caught:
        read_report(file)
    assert "\n" not in str(caught.value)


def test_what_a_terminal_would_act_on_is_escaped_in_every_form(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    evil = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202egpj.exe\nsecond line"
    rows = tuple(row.model_copy(update={"name": evil, "notes": (evil,)}) for row in report.rows)
    conditions = report.conditions.model_copy(update={"data": evil})
    hostile = report.model_copy(update={"rows": rows, "model": evil, "conditions": conditions, "verdict": (evil,)})
    write_report(hostile, tmp_path)
    assert read_report(tmp_path) == hostile
    Console(width=400, force_terminal=False).print(table(hostile))
    for text in (
        capsys.readouterr().out,
        (tmp_path / "report.md").read_text(),
        (tmp_path / "report.html").read_text(),
        (tmp_path / "report.json").read_text(),
    ):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
        assert re.search(r"\\+(x|u00)1b\\?\]0;owned\\+(x|u00)07", text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file"),
        ("{", "is not JSON"),
        ("[]", "is a JSON file, expected a report"),
        ('{"rows": []}', "is a JSON file, expected a report"),
        ('{"schema": 99}', "schema 99, this vitdeploy reads up to 1"),
        ('{"schema": 1, "created": "x"}', "has no report_sha256: an earlier vitdeploy wrote it, or it was edited"),
        ('{"schema": 1, "created": "x", "report_sha256": "0"}', "does not match its digest: it was edited or damaged"),
        (sealed({"schema": 1, "created": "x"}), "not a valid report: producer"),
    ],
)
def test_a_file_that_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=said) as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_keys_of_a_newer_minor_version_are_ignored(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    file: Path = tmp_path / "report.json"
    raw = json.loads(file.read_text())
    raw["rows"][0]["invented_later"] = 7
    file.write_text(sealed(raw))
    assert read_report(file) == report


@pytest.mark.parametrize(
    ("model", "data"), [("vit", "digits"), ("deit_small_patch16_224", "folder photos"), ("swin_t", "cifar10 (test)")]
)
def test_the_title_names_the_model_and_the_data(report: Report, model: str, data: str) -> None:
    conditions = report.conditions.model_copy(update={"data": data})
    changed = report.model_copy(update={"model": model, "conditions": conditions})
    page = render_html(changed)
    assert f"<title>{model} on {data} – bench report</title>" in page
    assert f"<h1>{model} on {data}</h1>" in page
    heading = render_markdown(changed).splitlines()[0]
    assert heading.replace("\\", "") == f"# {model} on {data}: bench report"


def test_threads_streams_and_runs_without_a_pause_are_tables_of_the_terminal() -> None:
    lines = [line.split() for line in _printed(everything(), 80, beside=True).splitlines() if line.strip()]
    name = "digits.int8.onnxruntime.onnx"
    assert [line[1:] for line in lines if line[0] == name] == [
        ["1", "0.900", "0.500", "0.400"],
        ["1", "2", "on", "the", "device", "5120"],
        ["1", "30", "0.340", "0.390", "+15", "%"],
    ]
    assert ["1", "thread", "2", "threads", "4", "threads"] in lines
    assert not measurement_tables(build(rows())), "nothing else was asked for"


@pytest.mark.parametrize(
    ("pinning", "spinning", "words"),
    [
        (True, None, "threads pinned"),
        (None, False, "threads sleeping"),
        (False, True, "threads not pinned and spinning"),
    ],
)
def test_settings_of_threads_stand_in_a_row_once(pinning: bool | None, spinning: bool | None, words: str) -> None:
    row = rows()[1].model_copy(update={"pinning": pinning, "spinning": spinning})
    named = row.model_copy(update={"name": f"vit.onnx (ONNX Runtime, CPU, {words})"})
    for one in (row, named):
        assert " ".join(_printed(build((one,)), 160).split()).count(words) == 1


@pytest.mark.parametrize(
    "changed", [["report.samples.npz"], ["images.parquet"], ["report.samples.npz", "images.parquet"], []]
)
def test_files_of_another_bench_beside_a_report_are_said(report: Report, tmp_path: Path, changed: list[str]) -> None:
    names = ["report.samples.npz", "images.parquet"]
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in (*names, "moved.elsewhere.parquet")}
    write_report(report.model_copy(update={"files": digests}), tmp_path)
    for name in names:
        (tmp_path / name).write_text("of another" if name in changed else name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read_report(tmp_path).files == digests
    expected = [f"{' and '.join(changed)} of another bench, or changed since: bench again"] if changed else []
    assert [str(one.message).partition(", ")[2] for one in said] == expected
