"""The documentation's site: what its pages are made of, without Sphinx; ``make docs`` builds it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from present import present

from vitdeploy import errors
from vitdeploy.cli.app import app
from vitdeploy.cli.flags import recipe_keys

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def site() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("site_pages")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def pages(site: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("docs") / "made"
    site.write_pages(folder)
    return {path.name: path.read_text("utf8") for path in folder.iterdir()}


def test_every_page_is_in_the_contents_once(pages: dict[str, str]) -> None:
    listed = re.findall(r"^[\w/-]+$", (DOCS / "index.md").read_text("utf8"), re.MULTILINE)
    written = [path.stem for path in DOCS.glob("*.md") if path.stem != "index"]
    assert sorted(listed) == sorted([*written, *(f"made/{name.removesuffix('.md')}" for name in pages)])


@pytest.mark.parametrize("text", ["the disk is full: …", "there is no dataset …", "keeps breaking: what has arrived"])
def test_troubleshooting_finds_a_message_by_its_words(pages: dict[str, str], text: str) -> None:
    assert text in pages["troubleshooting.md"]


@pytest.mark.parametrize(
    ("python", "printed"),
    [
        ("labels by order need equal counts; pass label_map='FILE'", "--label-map FILE"),
        ("expected at least 2: some are kept out", "--validation DATA"),
        ("makes one for any size", "'vitdeploy export … --fuse-resize any' makes"),
    ],
)
def test_troubleshooting_has_what_the_command_line_prints(pages: dict[str, str], python: str, printed: str) -> None:
    lines = [line for line in pages["troubleshooting.md"].splitlines() if python in line]
    assert lines
    assert all(printed in line.split("`>`")[1] for line in lines)


def test_troubleshooting_has_every_class_with_its_exit_code(pages: dict[str, str]) -> None:
    sections = pages["troubleshooting.md"].split("\n## ")[1:]
    codes = {section.split("\n")[0]: int(re.findall(r"Exit code (\d)", section)[0]) for section in sections}
    assert codes["UsageError"] == 2
    assert codes["BudgetError"] == 3
    assert set(codes) == {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.VitdeployError)
    }


def test_the_recipe_reference_has_every_key_of_the_default(pages: dict[str, str]) -> None:
    keys = set(re.findall(r"^\| `([\w.]+)`", pages["recipes.md"], re.MULTILINE))
    single = {path for path, settable in recipe_keys().values() if settable}
    assert len(single) > 30
    assert {path for path in single if path not in keys and not path.startswith("train.arguments")} == set()


@pytest.mark.parametrize(
    "row",
    [
        "| `train.options.epochs` | `int ≥ 1` | `140` |",
        r"| `bench.max_drop_by` | `'point' \| 'interval'` | `'point'` |",
        r"| `train.options.label_smoothing` | `float ≥ 0 and ≤ 0.999` | `0.1` |",
        r"| `build.workspace_mib` | `int \| None` | `None` |",
    ],
)
def test_the_recipe_reference_writes_types_for_people(pages: dict[str, str], row: str) -> None:
    assert row in pages["recipes.md"]
    assert "Annotated" not in pages["recipes.md"]


def test_the_reference_has_every_public_name(pages: dict[str, str]) -> None:
    vitdeploy: Any = importlib.import_module("vitdeploy")
    documented = set(re.findall(r"auto\w+:: vitdeploy\.(\w+)", pages["reference.md"]))
    assert documented == {name for name in vitdeploy.__all__ if callable(getattr(vitdeploy, name))}
    assert {"bench", "Remote", "Report", "ArtifactError"} <= documented


def test_the_page_of_commands_has_every_option_of_every_command(pages: dict[str, str]) -> None:
    sections = dict(re.findall(r"^##+ (.+)\n((?:(?!#).*\n)*)", pages["commands.md"], re.MULTILINE))
    root: Any = typer.main.get_command(app)
    groups = root.commands | {f"calibration {name}": one for name, one in root.commands["calibration"].commands.items()}
    assert set(sections) == set(groups)
    for name, command in groups.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", sections[name])), name
    assert "Exit with 3" in sections["quantize"]


def test_the_contents_lead_a_newcomer_from_the_quick_start_to_the_reference() -> None:
    listed = re.findall(r"^[\w/-]+$", (DOCS / "index.md").read_text("utf8"), re.MULTILINE)
    way = ["quick-start", "workstation", "jetson", "checkpoints", "made/calibration-sets", "quantization-explained"]
    way += ["reading-the-report", "made/troubleshooting", "made/reference"]
    assert [page for page in listed if page in way] == way
    readme = (DOCS.parent / "README.md").read_text("utf8")
    links = {f"docs/{name}.md" for name in listed if "/" not in name and name != "releasing"}
    assert links <= set(re.findall(r"\]\(([^)#]+)\)", readme)), "README links to every page"


def test_the_report_of_the_demo_is_a_page_of_the_site(site: ModuleType, tmp_path: Path) -> None:
    site.write_demo(tmp_path)
    page = (tmp_path / "demo" / "report.html").read_text("utf8")
    assert "digits:test" in page
    assert 'href="demo/report.html"' in (DOCS / "index.md").read_text("utf8")


def benchmark(name: str) -> ModuleType:
    place = str(DOCS.parent / "benchmarks")
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)


@pytest.mark.parametrize("name", ["range", "channels", "depth", "front"])
def test_a_picture_shows_what_was_measured_in_light_and_dark(name: str) -> None:
    pictures = benchmark("pictures")
    text = (DOCS / "pictures" / f"{name}.svg").read_text("utf8")
    assert text == pictures.drawings(json.loads(pictures.MEASURED.read_text("utf8")))[f"{name}.svg"]
    root = ElementTree.fromstring(text)
    names = "{http://www.w3.org/2000/svg}"
    assert all(len(present(present(root.find(f"{names}{part}")).text)) > 15 for part in ("title", "desc"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for mark in root.iter():
        x, y = float(mark.get("x") or mark.get("cx") or 0), float(mark.get("y") or mark.get("cy") or 0)
        assert 0 <= x <= width, mark.attrib
        assert 0 <= y + float(mark.get("height") or 0) <= height, mark.attrib
    assert "prefers-color-scheme:dark" in text
    assert "href" not in text
    assert len(text) < 30_000


def test_the_words_beside_the_pictures_are_of_what_was_measured() -> None:
    pictures = benchmark("pictures")
    page = pictures.PAGE.read_text("utf8")
    measured = json.loads(pictures.MEASURED.read_text("utf8"))
    assert pictures.put(page, measured) == page
    measured["range"]["clipped"] = 0.125
    assert "clips 12 % of" in pictures.put(page, measured)


def test_the_packages_of_a_jetson_are_those_that_vitdeploy_needs() -> None:
    packages = benchmark("jetson_packages")
    table = packages.PAGE.read_text("utf8").split(packages.BEGIN)[1].split(packages.END)[0]
    listed = re.findall(r"^\| ([a-z][\w.-]*) \| [\d.]+ \| [\d.]+ \|$", table, re.MULTILINE)
    assert listed == packages.names("cuda12") == packages.names("cuda13")
    assert {"onnxruntime", "cuda-python"} <= set(listed)
    assert not {"torch", "timm", "torchvision"} & set(listed)


def test_a_link_to_a_file_that_is_no_page_becomes_its_name_once(site: ModuleType, tmp_path: Path) -> None:
    text = (
        "[`digits/`](digits), [`x.yaml`](x.yaml), [how](x.yaml), [site](../docs/data.md#splits), [web](https://a.org)"
    )
    source = DOCS.parent / "calibration" / "README.md"
    shown = site.relinked(text, source, DOCS / "made")
    assert shown == "`digits`, `x.yaml`, how (`x.yaml`), [site](../data.md#splits), [web](https://a.org)"


def test_links_of_a_borrowed_page_lead_to_pages(pages: dict[str, str]) -> None:
    known = {path.name for path in DOCS.glob("*.md")} | set(pages)
    for name, text in pages.items():
        for target in re.findall(r"\]\((?![a-z]+:)([^)#\s]+\.md)", text):
            assert Path(target).name in known, f"{name}: {target}"
