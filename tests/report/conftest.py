from __future__ import annotations

import pytest
from sample_reports import build, rows

from vitdeploy.records import Report


@pytest.fixture(name="report")
def _report() -> Report:
    return build(rows())
