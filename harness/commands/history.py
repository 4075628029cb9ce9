"""``harness history``: one metric of a suite over the commits of its records. Works where torch is absent."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.commands._output import note, plot_file, print_named, warn
from harness.errors import HarnessError
from harness.label_text import same_label
from harness.report.comparing.history import (
    Point,
    Series,
    Turn,
    history,
    history_rows,
    turn_sentence,
    turns,
    write_history,
)
from harness.report.statistics.steps import FEWEST_POINTS
from harness.store import Store

NAMING = ("model", "label", "suite", "device", "commit")
"""What names a point of a series."""


def show_history(
    suite: str,
    metric: str,
    *,
    results: Path,
    models: Collection[str] = (),
    labels: Collection[str] = (),
    in_json: bool = False,
    plot: str | None = None,
) -> int:
    """Print a row a point of each series and draw them where that is asked.

    Raises:
        HarnessError: there is no such record, the metric is unknown, or the plot cannot be written.
    """
    file = None if plot is None else plot_file("--plot", plot)
    contents = Store(results).read()
    labels = {same_label(label) for label in labels}
    warn(contents.warnings)
    records = [
        record
        for record in contents.records
        if record.suite == suite
        and (not models or record.model_name in models)
        and (not labels or record.label in labels)
    ]
    if not records:
        raise HarnessError(f"there is no such record of suite '{suite}' in {results}")
    series = history(records, metric)
    marks = turns(series, metric)
    if in_json:
        steps = {(turn.series, turn.commit): _step(turn) for turn in marks}
        points = [
            {
                **key._asdict(),
                "commit": point.commit,
                "first": point.first.isoformat(),
                "values": list(point.values),
                "mean": point.mean,
                "interval": point.interval,
                "step": steps.get((key, point.commit)),
            }
            for key, found in series.items()
            for point in found
        ]
        print(json.dumps(points, indent=2))
    else:
        print_named(history_rows(series, metric, marks), NAMING)
        print()
        for turn in marks:
            note(turn_sentence(turn, metric))
        note(_legend(series, marks))
    if file is not None:
        write_history(series, metric, file, marks)
        if not in_json:
            print(f"\n{file}")
    return 1 if contents.warnings else 0


def _legend(series: Mapping[Series, Sequence[Point]], marks: Sequence[Turn]) -> str:
    """Return what was looked for, and where it could not be."""
    short = sum(len(points) < FEWEST_POINTS for points in series.values())
    if short == len(series):
        return f"No series has {FEWEST_POINTS} commits or more, so no step was looked for."
    found = "Steps" if marks else "No step was found. Steps"
    few = f" {short} of {len(series)} series have fewer than {FEWEST_POINTS} commits." if short else ""
    return f"{found}: changes of level that noise alone brings in 5% of histories, a commit being one value.{few}"


def _step(turn: Turn) -> dict[str, Any]:
    return {
        "change": turn.change,
        "interval": turn.interval,
        "p_value": turn.p_value,
        "after": turn.after,
        "until": turn.until,
    }
