"""Finds the records of a run by its name, or by the first digits of its id."""

from __future__ import annotations

from pathlib import Path

from harness.commands._output import warn
from harness.errors import HarnessError
from harness.record import Record
from harness.run_names import LAST, names_of, records_called
from harness.store import Store
from harness.toml_files import read_toml

MOST = 6
"""Runs that are listed where a name is that of several."""
LONGEST = 120
"""Characters of a name in a sentence."""


def find_records(results: Path, run: str, suite: str | None = None) -> list[Record]:
    """Return the records of one run, oldest first; of digits that are a record's own that record alone.

    Args:
        results: Folder of the records.
        run: As ``harness.run_names`` has it.
        suite: The suite that it is of, by name or file; None: any.

    Raises:
        HarnessError: no run, or more than one, is called so.
    """
    name = None if suite is None else suite_name(suite)
    contents = Store(results).read(name)
    warn(contents.warnings)
    found = records_called(contents.records, run)
    of_suite = "" if name is None else f" of suite '{name}'"
    names = names_of(found)
    if not names:
        raise HarnessError(
            f"no run{of_suite} in {results} is called '{_short(run)}', and no id starts so: give MODEL/LABEL/SEED, as "
            "harness status prints it, or last"
        )
    if len(names) > 1:
        raise HarnessError(
            f"'{_short(run)}' is {len(names)} runs{of_suite}: {_listed(list(names.values()))}; {_advice(run, found)}"
        )
    return found


def suite_name(suite: str) -> str:
    """Return by what name records know a suite that is given by name or file.

    Raises:
        HarnessError: the file cannot be read, or names no suite.
    """
    if not suite.endswith(".toml"):
        if "/" in suite or "\\" in suite:
            raise HarnessError(f"--suite {suite}: expected the name of a suite, or the path of a .toml file")
        return suite
    found = read_toml(Path(suite))[0].get("name")
    if not isinstance(found, str):
        raise HarnessError(f"{suite}: has no name of a suite")
    return found


def _short(run: str) -> str:
    return run if len(run) <= LONGEST else f"{run[:LONGEST]}…"


def _listed(names: list[str]) -> str:
    rest = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {rest} more" if rest > 0 else "")


def _advice(run: str, found: list[Record]) -> str:
    """Return how one of several runs can be named."""
    newest = f"'{LAST}/{_short(run)}' is the newest"
    if len({record.suite for record in found}) > 1:
        return f"narrow it with --suite, or name one; {newest}"
    if len({record.name for record in found}) == 1:
        return f"they were asked differently: give digits of an id; {newest}"
    return f"name one; {newest}"
