"""Every section of the pages under axe, at two widths, in light and dark: WCAG 2.2 AA and good practice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe import NoRegistryError, fetch_axe, violations
from browser import Page, find_browser, open_page
from sample_reports import everything

from vitdeploy.report import history, write_history, write_report

BROWSER = find_browser()
WIDTHS = (1280, 390)
SECTIONS = (
    "Verdict", "At a glance", "Results", "By class", "Images on which they differ", "Latency", "Throughput",
    "Scenarios", "Cost", "Where the time goes", "Where 8 bits lose", "Remarks", "Conditions", "How to read it",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH, and $CHROMIUM is not set"),
]


@pytest.fixture(name="axe", scope="module")
def _axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return fetch_axe(tmp_path_factory.mktemp("axe"))
    except NoRegistryError as error:
        pytest.skip(str(error))


@pytest.fixture(name="page", scope="module", params=["report", "history"])
def _page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    folder, report = tmp_path_factory.mktemp("page"), everything()
    if request.param == "report":
        file: Path = write_report(report, folder)
    else:
        older = report.model_copy(update={"created": "2026-01-01T00:00:00+00:00"})
        file = write_history(history([older, report]), folder / "history.html")
    with open_page(BROWSER, file) as page:
        page.call("Page.setBypassCSP", enabled=True)  # for the checker alone, which evaluates its own text
        yield page


def test_the_page_under_test_has_every_section(tmp_path: Path) -> None:
    page = write_report(everything(), tmp_path).read_text()
    assert [title for title in SECTIONS if f">{title}</h2>" not in page] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, axe: str, scheme: str, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page, axe) == []


def test_the_checker_sees_what_is_wrong(page: Page, axe: str) -> None:
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img id=bad src=\"data:,\"><p id=bad2 style=\"color:#ccc;"
        "background:#fff\">faint</p>')"
    )
    found = [line.partition(":")[0] for line in violations(page, axe)]
    page.evaluate("document.getElementById('bad').remove(); document.getElementById('bad2').remove()")
    assert {"image-alt", "color-contrast"} <= set(found)
