"""The page in a real browser: it shows what report.json holds, says nothing on the console, and asks for nothing."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, find_browser, open_page

from vitdeploy.records import Report
from vitdeploy.report import write_report

BROWSER = find_browser()
TABLE = """JSON.stringify([...document.querySelectorAll("#%s tbody tr")].map(
  row => [...row.cells].map(cell => cell.innerText)))"""
MINUS = "\N{MINUS SIGN}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH, and $CHROMIUM is not set"),
]


def _rows(page: Page, table: str) -> list[list[str]]:
    return json.loads(page.evaluate(TABLE % table))


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace(MINUS, "-"))]


def _bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sample_reports import build, rows

    folder = tmp_path_factory.mktemp("report")
    write_report(build(rows()), folder)
    return folder


@pytest.fixture(name="page", scope="module")
def _page(folder: Path) -> Iterator[Page]:
    assert BROWSER is not None
    with open_page(BROWSER, folder / "report.html") as page:
        yield page


@pytest.fixture(name="raw")
def _raw(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def test_the_table_on_the_page_is_the_one_in_the_json(page: Page, raw: Any) -> None:
    shown = _rows(page, "results")
    assert len(shown) == len(raw["rows"]) == 6
    for cells, row in zip(shown, raw["rows"], strict=True):
        name, runtime, precision, status, top1, delta, agreement, sqnr, size = cells
        assert name.splitlines()[0] == row["name"]
        assert {"cpu": "CPU", "cuda": "GPU"}[row["device"]] in runtime
        assert precision == row["precision"]
        assert status == {"ok": "measured", "built": "built, not run", "failed": "failed"}[row["status"]]
        for text, value, interval, scale in (
            (top1, row["top1"], row["top1_ci95"], 100),
            (delta, row["delta_top1_pp"], row["delta_ci95_pp"], 1),
        ):
            expected = [] if value is None else [scale * value, *(scale * limit for limit in interval)]
            assert _numbers(text) == pytest.approx(expected, abs=0.00501)
        assert _numbers(agreement) == (
            [] if row["agreement"] is None else pytest.approx([100 * row["agreement"]], abs=0.00501)
        )
        assert _numbers(sqnr) == (
            [] if row["logits_sqnr_db"] is None else pytest.approx([row["logits_sqnr_db"]], abs=0.0501)
        )
        if row["size_bytes"] is None:
            assert size == "–"
        else:
            assert _bytes(size) == pytest.approx(row["size_bytes"], rel=0.03)


def test_the_latency_table_on_the_page_is_the_one_in_the_json(page: Page, raw: Any) -> None:
    expected = [(row["name"], timing) for row in raw["rows"] for timing in row["timings"]]
    shown = _rows(page, "latency")
    assert len(shown) == len(expected) == 6
    for cells, (name, timing) in zip(shown, expected, strict=True):
        assert cells[0] == name
        assert cells[1] == str(timing["batch"])
        assert [float(cell) for cell in cells[3:6]] == pytest.approx(
            [timing["p50_ms"], timing["p90_ms"], timing["p99_ms"]], rel=0.005
        )
        assert float(cells[6]) == pytest.approx(timing["images_per_s"], abs=0.5)
        ratio = [] if timing["speedup"] is None else [timing["speedup"], *timing["speedup_ci95"]]
        assert _numbers(cells[8]) == pytest.approx(ratio, abs=0.00501)


def test_the_verdict_is_shown_word_for_word(page: Page, raw: Any) -> None:
    shown = json.loads(
        page.evaluate('JSON.stringify([...document.querySelectorAll(".verdict li")].map(item => item.innerText))')
    )
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in shown] == raw["verdict"]


def test_the_plots_are_there_and_have_words_for_who_cannot_see_them(page: Page, raw: Any) -> None:
    charts = page.evaluate('document.querySelectorAll("figure svg[role=img] > desc").length')
    assert charts == 4  # accuracy over latency, latency at two batch sizes, sizes
    described = page.evaluate('document.querySelector("figure svg desc").textContent')
    for row in raw["rows"]:
        if row["status"] == "ok":
            assert row["name"] in described
    marks = page.evaluate('document.querySelectorAll("figure svg.wide g .mark").length')
    assert marks == sum(row["status"] == "ok" for row in raw["rows"])
    outside = page.evaluate(
        """[...document.querySelectorAll("figure svg")].flatMap(svg => {
             const box = svg.getBoundingClientRect();
             return [...svg.querySelectorAll("text, .mark, .bar")].filter(shape => {
               const b = shape.getBoundingClientRect();
               return b.left < box.left - 1 || b.right > box.right + 1
                 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
             }).map(shape => shape.outerHTML);
           }).join("\\n")"""
    )
    assert outside == ""


def test_labels_of_the_plot_do_not_cover_each_other(page: Page) -> None:
    covering = page.evaluate(
        """(() => {
             const labels = [...document.querySelectorAll("svg.wide .label")];
             const boxes = labels.map(label => label.getBoundingClientRect());
             let count = 0;
             boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
               if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2) count++;
             }));
             return count;
           })()"""
    )
    assert covering == 0


def test_the_browser_finds_no_error(page: Page) -> None:
    assert page.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


def test_no_request_leaves_the_machine(page: Page, folder: Path) -> None:
    asked = [event["request"]["url"] for event in page.of("Network.requestWillBeSent")]
    assert asked
    page_url = (folder / "report.html").resolve().as_uri()
    assert [url for url in asked if url != page_url and not url.startswith("data:")] == []
    assert page.evaluate('performance.getEntriesByType("resource").length') == 0


def test_nothing_in_the_report_becomes_markup(page: Page) -> None:
    assert page.evaluate("document.scripts.length") == 1, "our own, which sorts tables"
    assert "<script>alert(1)</script>" in page.evaluate("document.querySelector('#results').innerText")


def _column(page: Page, table: str, column: int) -> list[str]:
    return [cells[column].splitlines()[0] for cells in _rows(page, table)]


def _click(page: Page, table: str, column: int) -> str | None:
    head = f'document.querySelectorAll("#{table} thead th")[{column}]'
    page.evaluate(f'{head}.querySelector("button").click()')
    return page.evaluate(f'{head}.getAttribute("aria-sort")')


def test_tables_are_sorted_by_number_size_or_word_and_go_back(page: Page) -> None:
    before = _column(page, "results", 0)
    assert _click(page, "results", 8) == "ascending"  # by bytes, not by the digits before the unit
    sizes = _column(page, "results", 8)
    assert [_bytes(text) for text in sizes[:-1]] == sorted(_bytes(text) for text in sizes[:-1])
    assert sizes[-1] == "–"
    assert _click(page, "results", 8) == "descending"
    assert _column(page, "results", 8) == [*reversed(sizes[:-1]), "–"]  # what was not measured stays last
    assert _click(page, "results", 8) is None
    assert _column(page, "results", 0) == before
    assert _click(page, "results", 0) == "ascending"
    assert _column(page, "results", 0) == sorted(before, key=str.lower)
    assert _click(page, "results", 5) == "ascending"
    assert _numbers(_column(page, "results", 5)[0])[0] < 0  # a minus sign is a sign
    _click(page, "results", 5)
    _click(page, "results", 5)
    assert _column(page, "results", 0) == before


def test_the_policy_of_the_page_lets_no_other_script_run(folder: Path) -> None:
    assert BROWSER is not None
    with open_page(BROWSER, folder / "report.html") as page:  # of its own: the refusal is logged
        ran = page.evaluate(
            """(() => { const script = document.createElement("script"); script.textContent = "window.ran = true";
                 document.body.append(script); script.remove(); return window.ran === true; })()"""
        )
        sorts = page.evaluate('document.querySelectorAll("#results thead button").length')
    assert (ran, sorts) == (False, 9)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page: Page, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 between each text's colour and what is behind it."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    poor = page.evaluate(
        """(() => {
             const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
             const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
               .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
               .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
             const behind = node => {
               const layers = [];
               for (; node; node = node.parentElement) {
                 const [r, g, b, alpha = 1] = parse(getComputedStyle(node).backgroundColor);
                 layers.push([[r, g, b], alpha]);
                 if (alpha === 1) break;
               }
               return layers.reduceRight(
                 (back, [colour, alpha]) => colour.map((v, i) => alpha * v + (1 - alpha) * back[i]), [255, 255, 255]);
             };
             const texts = "h1,h2,p,li,td,th,dt,dd,span,caption,figcaption,svg text";
             return [...document.querySelectorAll(texts)].filter(node => {
               if (!node.textContent.trim()) return false;
               const style = getComputedStyle(node);
               const front = light(parse(node instanceof SVGElement ? style.fill : style.color));
               const back = light(behind(node));
               return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05) < 4.5;
             }).map(node => node.outerHTML.slice(0, 90)).join("\\n");
           })()"""
    )
    assert poor == ""


def test_on_a_phone_what_is_wider_than_the_screen_says_so(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=375, height=800, deviceScaleFactor=1, mobile=True)
    told = page.evaluate(
        "[...document.querySelectorAll('#results, #latency, svg.wide')].map(wide => {"
        " const box = wide.closest('.scroll, figure');"
        " const hint = box.querySelector('.hint') || box.previousElementSibling;"
        " return box.scrollWidth > box.clientWidth && hint.checkVisibility() && hint.innerText.includes('sideways'); })"
    )
    widest = page.evaluate("document.documentElement.scrollWidth")
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    shown = page.evaluate("[...document.querySelectorAll('.hint')].some(hint => hint.checkVisibility())")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert told == [True, True, True]
    assert widest == 375
    assert shown is False


def test_the_page_prints_on_a4_without_losing_columns(page: Page) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=688, height=1000, deviceScaleFactor=1, mobile=False)
    page.call("Emulation.setEmulatedMedia", media="print")
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll, figure')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
    )
    printed = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    page.call("Emulation.setEmulatedMedia", media="")
    page.call("Emulation.clearDeviceMetricsOverride")
    assert cut == 0
    assert printed.startswith(b"%PDF-")


def test_report_read_back_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    report = Report.model_validate_json((folder / "report.json").read_text())
    again = write_report(report, tmp_path)
    assert again.read_text() == (folder / "report.html").read_text()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    "name", ["a_name_without_any_break_" * 8 + ".onnx", "MODEL (OpenVINO, CPU) WWWWWWWWW.onnx", "m" * 22, "漢字" * 40]
)
def test_long_names_widen_nothing_and_are_not_cut_off(tmp_path: Path, name: str, width: int) -> None:
    from sample_reports import everything

    assert BROWSER is not None
    report = everything()
    renamed = {row.name: f"{number}{name}" for number, row in enumerate(report.rows)}
    rows = tuple(row.model_copy(update={"name": renamed[row.name]}) for row in report.rows)
    base = report.baseline.model_copy(update={"row": renamed[report.baseline.row or ""], "latency_rows": {}})
    page_file = write_report(report.model_copy(update={"rows": rows, "baseline": base}), tmp_path)
    with open_page(BROWSER, page_file) as page:
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = page.evaluate(
            "[...document.querySelectorAll('svg text')].filter(text => text.getBoundingClientRect().left < "
            "text.ownerSVGElement.getBoundingClientRect().left - 1).map(text => text.textContent)"
        )
        assert cut == []


def test_the_command_is_whole_when_it_is_copied(page: Page, raw: Any) -> None:
    assert raw["command"]
    assert page.evaluate("document.querySelector('#command').textContent.trim()") == raw["command"]
