"""The published JSON Schema: what is written fits it, what is not a report does not, and it is that of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from vitdeploy.records import Report
from vitdeploy.report.files import report_json
from vitdeploy.report.schema import report_schema, schema_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"
MEASURING = Path(__file__).parents[2] / "docs" / "measuring.md"


def _check(content: Any) -> None:
    Draft202012Validator(report_schema()).validate(content)


def test_the_published_schema_is_that_of_the_records() -> None:
    assert PUBLISHED.read_text("utf8") == schema_text(), "make schema"


def test_a_report_fits_the_schema(report: Report) -> None:
    Draft202012Validator.check_schema(report_schema())
    _check(json.loads(report_json(report)))


@pytest.mark.slow
def test_a_finished_run_fits_the_schema(finished_run: Path) -> None:
    _check(json.loads((finished_run / "report.json").read_text("utf8")))


def _status(content: dict[str, Any]) -> None:
    content["rows"][0]["status"] = "fine"


def _scope(content: dict[str, Any]) -> None:
    content["rows"][0]["timings"][0]["scope"] = "somewhere"


def _undigested(content: dict[str, Any]) -> None:
    del content["report_sha256"]


def _text_for_a_number(content: dict[str, Any]) -> None:
    content["rows"][0]["timings"][0]["p50_ms"] = "1.9 ms"


@pytest.mark.parametrize("change", [_status, _scope, _undigested, _text_for_a_number])
def test_what_is_no_report_does_not_fit(report: Report, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(report_json(report))
    change(content)
    with pytest.raises(ValidationError):
        _check(content)


def test_every_number_of_a_report_is_explained() -> None:
    """docs/measuring.md has the name of every number, in a table or in the text on its subject."""
    explained = set(re.findall(r"[a-z]\w*", " ".join(re.findall(r"`([^`\n]+)`", MEASURING.read_text("utf8")))))
    schema = report_schema()
    records = [schema, *schema["$defs"].values()]
    numbers = {
        name
        for record in records
        for name, property_ in record.get("properties", {}).items()
        if re.search(r'"type": "(?:number|integer)"', json.dumps(property_))
    }
    assert len(numbers) > 80
    assert numbers - explained == set()
