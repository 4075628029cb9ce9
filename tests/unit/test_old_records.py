"""Records of every schema version load, report and compare: the files are history and never change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.expansion import load_suite
from harness.record import SCHEMA_VERSION
from harness.report.comparing.compare import compare_sides
from harness.report.reading.sides import load_side
from harness.report.write import write_report
from harness.store import Store, parse_files
from tests.records import ENVIRONMENT

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
    again = load_side(str(file))
    assert compare_sides(load_side(str(file)), again).is_stale
    again.records = tuple(r.model_copy(update={"uuid": f"{i:032x}"}) for i, r in enumerate(again.records))
    found = compare_sides(load_side(str(file)), again)
    assert found.counts["same"] > 0
    assert not found.fails


def test_every_committed_record_loads() -> None:
    contents = Store(COMMITTED).read()
    assert contents.warnings == ()
    assert len(contents.records) >= 14


@pytest.mark.parametrize(
    "file", [*sorted(FIXTURES.glob("*.jsonl")), *sorted(COMMITTED.glob("*.jsonl"))], ids=lambda file: file.stem
)
def test_an_environment_keeps_the_id_that_it_was_recorded_under(file: Path) -> None:
    records = parse_files([(file.name, file.read_bytes())]).records
    assert records
    assert all(record.environment.environment_id == record.environment_id for record in records)


def test_a_device_keeps_its_environment_id_once_its_compute_capability_is_recorded() -> None:
    changes = {
        "device_type": "cuda",
        "device_name": "test device",
        "device_memory_bytes": 80 * 2**30,
        "driver": "600.1",
    }
    device = ENVIRONMENT.model_copy(update=changes)
    recorded_before_the_field = "54f7eee51083d804"
    assert device.environment_id == recorded_before_the_field
    assert device.model_copy(update={"compute_capability": "9.0"}).environment_id == recorded_before_the_field
