"""``harness history``: one metric of a suite over the commits of its records. Works where torch is absent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.commands._output import plot_file, print_table, warn
from harness.errors import HarnessError
from harness.report.history import history, history_rows, write_history
from harness.store import Store


def main(args: argparse.Namespace) -> int:
    """Print a row a point of each series and draw them where that is asked.

    Raises:
        HarnessError: there is no such record, the metric is unknown, or the plot cannot be written.
    """
    file = None if args.plot is None else plot_file("--plot", args.plot)
    contents = Store(Path(args.results)).read()
    warn(contents.warnings)
    records = [
        record
        for record in contents.records
        if record.spec.suite == args.suite
        and (not args.model or record.spec.model_name in args.model)
        and (not args.method or record.spec.label in args.method)
    ]
    if not records:
        raise HarnessError(f"there is no such record of suite '{args.suite}' in {args.results}")
    series = history(records, args.metric)
    if args.json:
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
        print_table(history_rows(series, args.metric))
    if file is not None:
        write_history(series, args.metric, file)
        if not args.json:
            print(f"\n{file}")
    return 1 if contents.warnings else 0
