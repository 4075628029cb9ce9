"""What runs are called: ``MODEL/LABEL/SEED``, and by which texts the records of one are found.

A text is a name or a part of one that no other run shares (``lora``, ``llama2-7b/lora``, ``lora/2``), with the suite
before it where that is needed (``quickstart/lora``); ``last``, the run of the newest record, or ``last/lora``, the
newest of those; the first digits of a run's id, or those of a record's own; or the folder of kept weights. A name goes
before digits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import product

from harness.label_text import same_label
from harness.readings import spec_of
from harness.record import Record
from harness.spec import RunSpec

LAST = "last"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MOST = 48
"""Characters of a model or a label in the name of a folder: some file systems take 143 in all."""


def records_called(records: Sequence[Record], text: str) -> list[Record]:
    """Return the records of the runs that a text names, in their order.

    Args:
        records: In the order of time.
        text: As a person gives it.
    """
    text = text.strip().strip("/")
    found = _named(records, text) if text else []
    if not found and text.partition("/")[0] == LAST:
        rest = text.partition("/")[2]
        among = records_called(records, rest) if rest else list(records)
        newest = among[-1].run_id if among else None
        return [record for record in among if record.run_id == newest]
    return found or (_by_digits(records, text) if text else [])


def names_of(records: Sequence[Record]) -> dict[str, str]:
    """Return by run id what each run is called, with what tells those apart that share a name.

    Args:
        records: Of runs that a person is to choose from.
    """
    names = {record.run_id: record.name for record in records}
    suites = {record.run_id: record.suite for record in records}
    if len(set(suites.values())) > 1:
        names = {run: f"{suites[run]}/{name}" for run, name in names.items()}
    called = list(names.values())
    return {run: name if called.count(name) == 1 else f"{name} ({run})" for run, name in names.items()}


def folder_name(record: Record) -> str:
    """Return what the folder of a run's kept weights is called, on any file system: ``MODEL-LABEL-SEED-DIGITS``.

    The digits are those of the record: two runs of one name, and letters that a file system does not tell apart, keep
    folders of their own.
    """
    return run_folder(spec_of(record), record.file_stem)


def run_folder(spec: RunSpec, of: str) -> str:
    """Return ``MODEL-LABEL-SEED-DIGITS`` of a run; the digits are those of what alone it stands for."""
    digits = hashlib.sha256(of.encode()).hexdigest()[:8]
    return f"{_safe(spec.model_name)}-{_safe(spec.label)}-{spec.seed}-{digits}"


def _safe(name: str) -> str:
    """Return a name as every file system takes it; a long one loses its end."""
    return _UNSAFE.sub("_", name)[:_MOST].strip("_.-") or "unnamed"


def _named(records: Sequence[Record], text: str) -> list[Record]:
    wanted = {text, _label_in_order(text)}
    return [record for record in records if wanted & _forms(record)]


def _forms(record: Record) -> set[str]:
    """Return every text that names a run, from the whole to its label alone; a seed alone is none."""
    parts = (record.suite, record.model_name, record.label, str(record.seed))
    taken = [[part for part, kept in zip(parts, keep, strict=True) if kept] for keep in product((0, 1), repeat=4)]
    forms = {"/".join(some) for some in taken if some and some != [parts[3]]}
    return forms | ({record.weights, record.weights.rpartition("/")[2]} if record.weights else set())


def _label_in_order(text: str) -> str:
    """Return a name with the settings in its label's brackets as outputs print them."""
    start, end = text.find("["), text.rfind("]")
    if not 0 <= start < end:
        return text
    begin = text.rfind("/", 0, start) + 1
    return text[:begin] + same_label(text[begin : end + 1]) + text[end + 1 :]


def _by_digits(records: Sequence[Record], text: str) -> list[Record]:
    """Return the records of runs whose id begins so, else those whose own does, or run and record together."""
    of_runs = [record for record in records if record.run_id.startswith(text)]
    return of_runs or [r for r in records if r.begins_with(text)]
