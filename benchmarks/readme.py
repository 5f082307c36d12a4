"""Put what ``make demo`` printed into the README, with a picture of its report.

    make demo
    python benchmarks/readme.py [FOLDER]

FOLDER is a finished run (default ``vitdeploy-run``). Its report goes to ``docs/demo/report.json``, and a picture of the
page, taken with Chromium, to ``docs/demo/report.png``. The block in README.md is rendered from the report, and a test
holds the two together.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from vitdeploy.records import Report
from vitdeploy.report import read_report, table
from vitdeploy.report.view import condition_facts, environment_facts

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- what make demo printed -->\n", "<!-- end of it -->\n"
WIDTH, HEIGHT = 1000, 1330
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


def printed(report: Report) -> str:
    """Return what the command line prints of a report in 108 columns, and under it the conditions."""
    stream = io.StringIO()
    console = Console(file=stream, width=108)
    console.print(table(report))
    for line in report.verdict:
        console.print(line, markup=False, highlight=False)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
    facts = [*condition_facts(report), *environment_facts(report.environment)]
    wanted = ("Data", "Turns", "CPU threads", "Other load", "CPU", "GPU", "System")
    said = "\n".join(f"* {fact.name}: {fact.value}" for fact in facts if fact.name in wanted)
    when = f"Measured {report.created[:10]} by {report.producer}, under these conditions:"
    return f"```text\n{text.strip()}\n```\n\n{when}\n\n{said}\n"


def put(readme: Path, block: str) -> None:
    """Replace what stands between the two marks."""
    text = readme.read_text("utf8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    readme.write_text(f"{head}{BEGIN}\n{block}\n{END}{tail}", "utf8")


def take_picture(page: Path, picture: Path) -> None:
    """Open the page in a browser and keep what it shows."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser found for the picture, expected one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *SWITCHES.split(), f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run(
            [*command, f"--screenshot={picture}", page.resolve().as_uri()], check=True, capture_output=True, timeout=120
        )


def main() -> None:
    """Renew README.md and docs/demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("vitdeploy-run"))
    folder = parser.parse_args().folder
    demo = ROOT / "docs" / "demo"
    demo.mkdir(exist_ok=True)
    shutil.copyfile(folder / "report.json", demo / "report.json")
    take_picture(folder / "report.html", demo / "report.png")
    put(ROOT / "README.md", printed(read_report(demo / "report.json")))


if __name__ == "__main__":
    main()
