"""Right answers by class, in the page, in Markdown, in the terminal and in the JSON."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from sample_reports import build, rows

from vitdeploy.records import ModelSpec, Report
from vitdeploy.records.report import ClassCount
from vitdeploy.report import class_table, read_report, write_report
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.report.plots import scatters
from vitdeploy.report.view import class_lines, is_warning

INT8 = "digits.int8.onnxruntime.onnx"


def by_class(counts: dict[str, tuple[int, ...]], images: tuple[int, ...]) -> Report:
    """Return the sample report with right answers by class for some of its rows."""
    found = tuple(row.model_copy(update={"correct_by_class": counts.get(row.name)}) for row in rows())
    classes = tuple(ClassCount(name=f"class {index}", images=count) for index, count in enumerate(images))
    report = build(found)
    return report.model_copy(update={"conditions": report.conditions.model_copy(update={"classes": classes})})


def printed(report: Report, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(class_table(report))
    return stream.getvalue()


def test_the_worst_class_of_any_row_comes_first_with_counts_and_changes_to_the_baseline() -> None:
    report = by_class({"digits.safetensors": (10, 9, 4), INT8: (10, 2, 5)}, (10, 10, 5))
    lines = [(line.name, line.images, line.cells) for line in class_lines(report)]
    assert lines == [
        ("class 1", 10, ("9 (90 %)", "2 (20 %) −7")),
        ("class 2", 5, ("4 (80 %)", "5 (100 %) +1")),
        ("class 0", 10, ("10 (100 %)", "10 (100 %)")),
    ]
    for text in (render_html(report), render_markdown(report), printed(report)):
        assert text.index("class 1") < text.index("class 2") < text.index("class 0")
        for cell in ("9 (90 %)", "2 (20 %) −7", "5 (100 %) +1"):
            assert cell in text


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    report = by_class({INT8: (1, 2)}, (3, 3))
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(("classes", "folded"), [(20, 0), (21, 1), (1000, 980)])
def test_beyond_twenty_classes_the_rest_is_folded(classes: int, folded: int) -> None:
    report = by_class({INT8: tuple(range(classes))}, (classes,) * classes)
    page, text = render_html(report), render_markdown(report)
    assert page.count("data-class=") == classes
    assert (f"<summary>{folded} more classes</summary>" in page) == bool(folded)
    assert ("<details>" in page) == bool(folded)
    assert text.count("| class ") == classes - folded
    assert (f"{folded} more classes are in report.json" in text) == bool(folded)
    assert page.index(">class 0<") < page.index(">class 19<")


def test_a_report_without_such_counts_has_no_such_section() -> None:
    report = build(rows())
    assert class_lines(report) == []
    assert "By class" not in render_html(report)
    assert "By class" not in render_markdown(report)


def test_names_of_classes_are_text_and_no_markup() -> None:
    report = by_class({INT8: (1,)}, (2,))
    name = "<b>|`\x1b[31m"
    evil = report.conditions.model_copy(update={"classes": (ClassCount(name=name, images=2),)})
    report = report.model_copy(update={"conditions": evil})
    assert "<b>" not in render_html(report).split("</style>")[1]
    assert "\x1b" not in render_html(report) + render_markdown(report) + printed(report)


@pytest.mark.parametrize(
    ("text", "warns"),
    [
        ("The test set is small: with 60 images a drop of 5.00 pp can go unseen", True),
        ("vit.onnx is not shown to be better than chance (10.00 %).", True),
        ("3 of the 60 images of 'x' were trained on, so this top-1 says little about new images: name data", True),
        ("On this CPU, ship vit.onnx under ONNX Runtime: 2.50× as fast", False),
        ("vit.fp16.engine was built and not run", False),
    ],
)
def test_what_puts_the_numbers_in_doubt_stands_out_on_the_page(text: str, warns: bool) -> None:
    assert is_warning(text) == warns
    page = render_html(build(rows(), verdict=("On this CPU, ship it.", text)))
    assert ('<li class="warning">' in page) == warns


def test_models_without_a_single_class_have_no_plot_of_agreement() -> None:
    nothing = {"top1": None, "top1_ci95": None, "delta_top1_pp": None, "delta_ci95_pp": None, "agreement": None}
    report = build(tuple(row.model_copy(update=nothing) for row in rows()))
    assert scatters(report) == []
    assert "Agreement with the baseline over" not in render_html(report)


@pytest.mark.parametrize(
    ("name", "arguments", "title"),
    [
        ("vit", {"image_size": 32, "patch": 4, "width": 192, "depth": 6}, "vit 32×32, patch 4, width 192, depth 6"),
        ("vit", {"image_size": [64, 48], "depth": 2}, "vit 48×64, depth 2"),
        ("vit", {}, "vit"),
        ("deit_small_patch16_224", {"image_size": 224, "patch": 16}, "deit_small_patch16_224"),
    ],
)
def test_a_model_that_is_called_like_its_family_is_told_by_its_sizes(
    name: str, arguments: dict[str, object], title: str
) -> None:
    assert ModelSpec(family="vit", name=name, arguments=arguments).title == title
