"""Layouts: which columns a row has, what they are called in a file, and which layout a file is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.catalogue.datasets import FIELDS
from harness.data.tables import Values, read_values
from harness.errors import HarnessError, near_miss

FIRST_ROWS = 100
"""Rows whose columns say of which layout a file is."""
LONGEST_LIST = 20
"""Columns that a message names."""


def find_layout(file: Path, columns: Mapping[str, str]) -> str:
    """Return the layout whose columns the first rows of a file have, the only one.

    Args:
        file: As :func:`harness.data.tables.read_values` takes it.
        columns: By our name, what a column is called in the file.

    Raises:
        HarnessError: it is of none, or of several; the sentence lists its columns.
    """
    found = columns_of(read_values(file, FIRST_ROWS).values)
    ours = set(renamed(dict.fromkeys(found), columns))
    fitting = {layout: set(fields) for layout, fields in FIELDS.items() if _has(ours, layout)}
    # Choices are asked with a question and an answer, as plain questions are: the layout that takes more is meant.
    best = [one for one, fields in fitting.items() if not any(fields < others for others in fitting.values())]
    if len(best) == 1:
        return best[0]
    _check_named(columns, found, file)
    told = "; ".join(f"{layout}: {' and '.join(fields)}" for layout, fields in FIELDS.items())
    which = f"the layouts {' and '.join(best)} alike" if best else "no layout that there is"
    raise HarnessError(
        f"{file}: its columns ({_listed(found)}) are those of {which} ({told}): say in [datasets.NAME] which layout "
        "it is, and with columns = { OURS = 'THEIRS' } what they are called there"
    )


def _has(ours: set[str], layout: str) -> bool:
    return all(field in ours or any(other in ours for other in ALSO.get(field, ())) for field in FIELDS[layout])


ALSO = {"messages": ("conversations",)}
"""Other names of a field, ShareGPT's."""


def with_our_names(values: Values, columns: Mapping[str, str], file: Path) -> list[Any]:
    """Return rows with their columns under our names.

    Args:
        values: Of the file.
        columns: By our name, what a column is called in the file.
        file: For messages.

    Raises:
        HarnessError: no row has a column that is named.
    """
    if not columns:
        return values.values
    found = columns_of(values.values)
    _check_named(columns, found, file)
    return [renamed(value, columns) if isinstance(value, dict) else value for value in values.values]


def _check_named(columns: Mapping[str, str], found: Sequence[str], file: Path) -> None:
    for ours, theirs in columns.items():
        if theirs not in found:
            raise HarnessError(
                f"{file}: columns = {{ {ours} = '{theirs}' }}: no row has a column '{theirs}'"
                f"{near_miss(theirs, found[:LONGEST_LIST])}"
            )


def renamed(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under our names; a column that has one is no longer called as in the file."""
    taken = {*columns, *columns.values()}
    kept = {name: given for name, given in value.items() if name not in taken}
    return kept | {ours: value[theirs] for ours, theirs in columns.items() if theirs in value}


def columns_of(values: Sequence[Any]) -> list[str]:
    """Return the columns that rows have, in the order in which they are met."""
    return list(dict.fromkeys(str(name) for value in values if isinstance(value, dict) for name in value))


def _listed(names: Iterable[str]) -> str:
    all_names = [*names]
    shown = ", ".join(all_names[:LONGEST_LIST])
    return f"{shown}, …" if len(all_names) > LONGEST_LIST else shown or "none"
