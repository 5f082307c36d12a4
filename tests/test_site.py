"""The documentation's site: what its pages are made of, without Sphinx; ``make docs`` builds it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitdeploy import errors
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


def test_the_reference_has_every_public_name(pages: dict[str, str]) -> None:
    vitdeploy: Any = importlib.import_module("vitdeploy")
    documented = set(re.findall(r"auto\w+:: vitdeploy\.(\w+)", pages["reference.md"]))
    assert documented == {name for name in vitdeploy.__all__ if callable(getattr(vitdeploy, name))}
    assert {"bench", "Remote", "Report", "ArtifactError"} <= documented


def test_links_of_a_borrowed_page_lead_to_pages(pages: dict[str, str]) -> None:
    known = {path.name for path in DOCS.glob("*.md")} | set(pages)
    for name, text in pages.items():
        for target in re.findall(r"\]\((?![a-z]+:)([^)#\s]+\.md)", text):
            assert Path(target).name in known, f"{name}: {target}"
