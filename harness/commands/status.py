"""``harness status``: what of a suite is done, failed, still to do, by the same rule by which ``run`` skips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from harness.answers import answer
from harness.commands._executor import environment_for
from harness.commands._output import print_table, warn
from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.record import Record
from harness.runs.claims import FOLDER as CLAIMS
from harness.runs.failing import Endings
from harness.runs.slurm_files import SlurmFiles
from harness.spec import RunSpec
from harness.stand_ins import called
from harness.store import Store, runs_of


def status(
    chosen: SelectionRequest,
    *,
    results: Path,
    any_environment: bool = False,
    gpus_per_run: int | None = None,
    in_json: bool = False,
) -> int:
    """Print one row a run; on how many devices runs are to be is the suite's word where None is given."""
    selection = select(chosen)
    contents = Store(results).read(selection.suite.name)
    environment_id = None if any_environment else _environment_id(gpus_per_run or selection.suite.gpus_per_run)
    endings = Endings.recorded(contents.records, environment_id, ())
    submitted = _submitted(results)
    rows = [_row(spec, contents.records, environment_id, endings.of(spec), submitted) for spec in selection.specs]
    warn(contents.warnings)
    if in_json:
        print(json.dumps(rows, indent=2))
        return 1 if contents.warnings else 0
    print_table([_shown(row) for row in rows])
    done = sum(row["to_do"] == "no" for row in rows)
    print(f"\n{done} of {len(rows)} runs done, {len(rows) - done} to do")
    return 1 if contents.warnings else 0


def _environment_id(num_ranks: int) -> str | None:
    """Return the present environment's id, or None where torch is absent and nothing could run anyway."""
    try:
        return environment_for(num_ranks).environment_id
    except ModuleNotFoundError:
        return None


def _submitted(results: Path) -> dict[str, str]:
    """Return what the Slurm jobs are doing that have not answered yet, by the id of their run."""
    files, found = SlurmFiles(results), {}
    for name, submission in files.submissions().items():
        if files.answer(submission.uuid) is None:
            begun = (results / CLAIMS / f"{name}.lease").exists()
            found[submission.run_id] = f"{'running' if begun else 'queued'} as job {submission.job}"
    return found


def _shown(row: dict[str, str]) -> dict[str, str]:
    """Return a row as it stands in the table: the name of the run first, which says model, label and seed."""
    return {"run": row["run"], "id": row["run_id"][:8]} | {key: row[key] for key in ("state", "to_do", "reason")}


def _row(
    spec: RunSpec,
    records: tuple[Record, ...],
    environment_id: str | None,
    ending: Record | None,
    submitted: Mapping[str, str],
) -> dict[str, str]:
    """Return what is known of a run.

    Args:
        spec: The run.
        records: Of its suite.
        environment_id: Whose records count; None: any.
        ending: Of another seed, as which this one would end.
        submitted: What jobs are doing, by the id of their run.
    """
    of_run = runs_of(records, spec.run_id)
    here = [record for record in of_run if record.ran_in(environment_id)]
    newest = (here or of_run)[-1] if of_run else None
    answered = answer(records, spec, environment_id)
    state: str
    state, reason = ("not run", None) if newest is None else newest.ending
    if of_run and not here:
        state += " in another environment"
    if answered is not None and not of_run:
        state, reason = answered.ending
        state += f" by {answered.called}, whose scores hold these"
    if answered is None and spec.run_id in submitted:
        state, reason = submitted[spec.run_id], None
    elif ending is not None and answered is None:
        status, why = ending.ending
        reason = f"would end as seed {ending.seed} did ({status}: {why})"
    return {
        "run": spec.run_name,
        "run_id": spec.run_id,
        "model": called(spec),
        "label": spec.label,
        "seed": str(spec.seed),
        "state": state,
        "to_do": "yes" if answered is None and ending is None else "no",
        "reason": reason or "",
    }
