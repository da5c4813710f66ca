"""The frame of every report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safelight.core.report import write_report

DOCUMENT = {"options": {"lang": "en", "input": os.fsdecode(b"cells\xff.tif")}, "events": [], "memory": []}


def test_a_report_names_files_whose_names_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "plain_report"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "report.html.j2").write_text("{{ options.input }}")
    monkeypatch.syspath_prepend(package.parent)
    assert write_report(tmp_path, DOCUMENT, "plain_report").read_text() == "cells\\udcff.tif"
