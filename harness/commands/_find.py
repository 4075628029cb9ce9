"""Finds a record by the id of its run, or by the first digits of it."""

from __future__ import annotations

from pathlib import Path

from harness.commands._output import warn
from harness.errors import HarnessError
from harness.readings import is_of_run
from harness.record import Record
from harness.store import Store


def find_records(results: Path, run_id: str) -> list[Record]:
    """Return the records of one run, oldest first.

    Raises:
        HarnessError: no run, or more than one, has an id that starts so.
    """
    contents = Store(results).read()
    warn(contents.warnings)
    found = [record for record in contents.records if is_of_run(record, run_id)] if run_id else []
    ids = sorted({record.run_id for record in found})
    if not ids:
        raise HarnessError(f"no record in {results} has a run id that starts with '{run_id}'; see harness status")
    if len(ids) > 1:
        raise HarnessError(f"'{run_id}' is the start of {len(ids)} run ids: {', '.join(ids)}; give more digits")
    return found
