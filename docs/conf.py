"""Sphinx: ``make docs``. Warnings, links among them that lead nowhere, are errors there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import site_pages  # noqa: E402 - found by the line above

import vitdeploy  # noqa: E402

site_pages.write_pages(HERE / "made")
site_pages.write_demo(HERE / "made" / "site")

project = "vitdeploy"
copyright = "the vitdeploy authors, Apache-2.0"
version = release = vitdeploy.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["demo", "made/site"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

autodoc_mock_imports = ["torch", "torchvision", "timm", "lightning_fabric"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"vitdeploy {release}"
html_show_sourcelink = False
smartquotes_action = "D"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["made/site"]

FIELD = re.compile(r"[a-z]\w*: \S")
EXAMPLE = re.compile(r"^\[[^\]]+\]\((\.\./examples/[^)]+)\)$", re.MULTILINE)
CALIBRATION = "](../calibration/README.md"


def _to_made_pages(app: Any, name: str, source: list[str]) -> None:
    """Let links to files outside this folder lead to the pages that are made of them, and show examples in place."""

    def example(match: re.Match[str]) -> str:
        language = "yaml" if match[1].endswith(".yml") else "python"
        return f"```{{literalinclude}} {match[1]}\n:language: {language}\n```"

    if not name.startswith("made/"):
        text = source[0].replace(CALIBRATION, "](made/calibration-sets.md")
        source[0] = EXAMPLE.sub(example, text)


def _to_arguments(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Let fields that a docstring lists as ``name: what it is`` count as arguments, as napoleon has them."""
    first = next((index for index, line in enumerate(lines) if FIELD.match(line)), None)
    if what == "class" and first is not None:
        lines[first:] = ["Args:", *(f"    {line}" for line in lines[first:])]


def setup(app: Any) -> None:
    """Add what happens when a page is read."""
    app.connect("source-read", _to_made_pages)
    app.connect("autodoc-process-docstring", _to_arguments, priority=100)
