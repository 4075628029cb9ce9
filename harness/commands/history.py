"""``harness history``: one metric of a suite over the commits of its records. Works where torch is absent."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from harness.commands._output import plot_file, print_table, warn
from harness.errors import HarnessError
from harness.label_text import same_label
from harness.report.comparing.history import history, history_rows, write_history
from harness.store import Store


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
    if in_json:
        points = [
            {
                **key._asdict(),
                "commit": point.commit,
                "first": point.first.isoformat(),
                "values": list(point.values),
                "mean": point.mean,
                "interval": point.interval,
            }
            for key, found in series.items()
            for point in found
        ]
        print(json.dumps(points, indent=2))
    else:
        print_table(history_rows(series, metric))
    if file is not None:
        write_history(series, metric, file)
        if not in_json:
            print(f"\n{file}")
    return 1 if contents.warnings else 0
