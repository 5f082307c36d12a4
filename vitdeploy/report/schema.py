"""The JSON Schema of ``report.json``: ``python -m vitdeploy.report.schema`` prints it, docs/ publishes it."""

from __future__ import annotations

import json
import sys
from typing import Any

from vitdeploy.artifacts.report_json import SCHEMA_VERSION
from vitdeploy.records import Report
from vitdeploy.records.report import DIGEST_KEY

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def report_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of what ``write_report`` writes; keys that all reports have are required."""
    schema = Report.model_json_schema(mode="serialization")
    schema["properties"]["schema"] = {"const": SCHEMA_VERSION, "title": "Schema"}
    schema["properties"][DIGEST_KEY] = {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "SHA-256 of all other keys, as compact JSON with sorted keys.",
    }
    schema["required"] = sorted({*schema.get("required", ()), DIGEST_KEY})
    return {"$schema": DIALECT, "title": "vitdeploy report", **{k: v for k, v in schema.items() if k != "title"}}


def schema_text() -> str:
    """Return the schema as it stands in docs/report.schema.json."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
