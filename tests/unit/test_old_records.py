"""Records of every schema version load, report and compare: the files are history and never change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.record import SCHEMA_VERSION
from harness.report.compare import compare_sides
from harness.report.sides import load_side
from harness.report.write import write_report
from harness.store import Store, parse_files
from harness.suite import load_suite

FIXTURES = Path(__file__).parent / "fixtures_records"
COMMITTED = Path(__file__).parents[2] / "results" / "records"
VERSIONS = range(1, SCHEMA_VERSION + 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_a_version_load_report_and_compare(version: int, tmp_path: Path) -> None:
    file = FIXTURES / f"version-{version}.jsonl"
    data = file.read_bytes()
    assert {json.loads(line)["schema_version"] for line in data.splitlines()} == {version}
    contents = parse_files([(file.name, data)])
    assert contents.warnings == ()
    assert {record.schema_version for record in contents.records} == {SCHEMA_VERSION}
    written = write_report(load_suite("configurations"), contents, tmp_path, ["csv"])
    assert "smollm2-135m" in written[0].read_text()
    found = compare_sides(load_side(str(file)), load_side(str(file)))
    assert found.counts["same"] > 0
    assert not found.fails


def test_every_committed_record_loads() -> None:
    contents = Store(COMMITTED).read()
    assert contents.warnings == ()
    assert len(contents.records) >= 14
