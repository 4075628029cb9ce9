"""What the proofs of a report's runs show, by row and for machines.

Records are judged as they are read, so that one that was recorded as ok before a check was there is named too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.proof import Judgement
from harness.report.reading.summary import Row, Run, Summary

_KEY = "proofs"
"""Place of a row's judgements among its estimates."""


def judgements_of(row: Row) -> tuple[tuple[Run, Judgement], ...]:
    """Return the runs of a row that trained to their end, each with what its proof shows."""
    if _KEY not in row.estimates:
        pairs = ((run, run.judgement) for run in row.runs)
        row.estimates[_KEY] = tuple((run, judgement) for run, judgement in pairs if judgement is not None)
    found: tuple[tuple[Run, Judgement], ...] = row.estimates[_KEY]
    return found


def has_failing_proof(row: Row) -> bool:
    """Return whether the proof of any run of a row fails."""
    return any(judgement.failed for _, judgement in judgements_of(row))


def failing_rows(summary: Summary) -> list[Row]:
    """Return the rows with a run whose proof fails."""
    return [row for row in summary.rows if has_failing_proof(row)]


def all_judgements(summary: Summary) -> Iterator[tuple[Run, Judgement]]:
    """Yield every run of a summary that trained to its end, with what its proof shows."""
    for row in summary.rows:
        yield from judgements_of(row)


def proofs_json(summary: Summary) -> dict[str, Any]:
    """Return the same for machines."""
    found = list(all_judgements(summary))
    return {
        "num_whole": sum(judgement.is_whole for _, judgement in found),
        "num_partly_judged": sum(not judgement.is_whole and not judgement.failed for _, judgement in found),
        "failing": [
            {
                "model": run.model,
                "label": run.label,
                "seed": run.seed,
                "uuid": run.uuid,
                "checks": [{"name": check.name, "sentence": check.sentence} for check in judgement.failed],
            }
            for run, judgement in found
            if judgement.failed
        ],
    }
