"""One metric of a suite over the commits that its records were made at: a table and a plot.

Points of one series were asked alike and ran on one device: another version of the suite, protocol or device begins a
series of its own. Scores are those of the runs themselves, not of later evaluations. Steps of the level are looked for
in what is left once seeds that not every commit has are accounted for (:mod:`harness.report.statistics.steps`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import expm1, log
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import HarnessError, near_miss
from harness.proof import ending_of
from harness.readings import headline_scores
from harness.record import Record
from harness.record_environment import Environment
from harness.report.comparing.measures import SCORE, quantities_by_metric, scored_tasks
from harness.report.plots.style import LABEL_LIMIT, common_style, label_styles, save_as
from harness.report.reading.view import View, view_of
from harness.report.statistics.intervals import Interval, mean_value, t_interval
from harness.report.statistics.steps import FEWEST_POINTS, LEVEL, adjusted_means, steps
from harness.report.table import one_line
from harness.report.units import NOTHING, UNITS, scaled, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (7.6, 3.4)


class Series(NamedTuple):
    """What the points of one line have in common."""

    model: str
    label: str
    question: str
    """Version of the suite and protocol."""
    device: str


@dataclass(frozen=True)
class Point:
    """The runs of one series at one commit."""

    commit: str
    """As far as it is known; uncommitted changes by the checksum of the source."""
    first: datetime
    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    """Of the values."""
    scored: bool = False
    """Whether the values are scores, whose spread over seeds leaves out that of the items they share."""

    @property
    def mean(self) -> float:
        """Return the mean over seeds and repeats."""
        return fmean(self.values)

    @property
    def interval(self) -> Interval | None:
        """Return Student's interval over the runs; None of a single one, and of scores."""
        return t_interval(self.values) if len(self.values) > 1 and not self.scored else None


def history(records: Sequence[Record], metric: str) -> dict[Series, list[Point]]:
    """Return the series of a metric, each with its points in the order of time.

    Args:
        records: Of one suite, in the order of time.
        metric: A measure of ``harness compare``, ``score`` for the mean over tasks, or a task.

    Raises:
        HarnessError: the metric is unknown, or no record has it.
    """
    runs = [record for record in records if record.is_run and ending_of(record)[0] == "ok"]
    tasks = scored_tasks(score for record in runs for score in record.scores)
    known = [*quantities_by_metric(), SCORE, *tasks]
    if metric not in known:
        raise HarnessError(f"there is no metric '{metric}'{near_miss(metric, known)}")
    found: dict[Series, dict[str, list[tuple[datetime, int, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in runs:
        value = _value(record, metric)
        if value is not None:
            view = view_of(record)
            found[_series(record, view)][commit_of(view.environment)].append((record.started_at, record.seed, value))
    if not found:
        raise HarnessError(f"no run with a result has the metric '{metric}'{_needed(metric)}")
    return {
        series: sorted(
            (
                Point(
                    commit,
                    min(when for when, _, _ in runs),
                    tuple(value for _, _, value in runs),
                    tuple(seed for _, seed, _ in runs),
                    metric not in quantities_by_metric(),
                )
                for commit, runs in c.items()
            ),
            key=lambda point: point.first,
        )
        for series, c in sorted(found.items())
    }


@dataclass(frozen=True)
class Turn:
    """A step of one series, told by commits."""

    series: Series
    commit: str
    """The first on the new level."""
    after: str
    """The last commit that is on the old level with 95% confidence."""
    until: str
    """The first that is on the new one."""
    change: float
    """A fraction of the old level where ratios matter, else a difference."""
    interval: Interval | None
    """Of the change, 95%; None where the values repeat exactly."""
    p_value: float | None


def turns(series: dict[Series, list[Point]], metric: str) -> list[Turn]:
    """Return the steps of all series, in order; all series share one level, and p-values count them all."""
    found = []
    tested = max(1, sum(len(points) >= FEWEST_POINTS for points in series.values()))
    for key, points in series.items():
        values = [list(zip(point.seeds, point.values, strict=True)) for point in points]
        as_ratio = _as_ratio(metric) and all(value > 0 for runs in values for _, value in runs)
        if as_ratio:
            values = [[(seed, log(value)) for seed, value in runs] for runs in values]

        def told(change: float, as_ratio: bool = as_ratio) -> float:
            return expm1(change) if as_ratio else change

        for step in steps(adjusted_means(values), LEVEL / tested):
            interval = None if step.interval is None else (told(step.interval[0]), told(step.interval[1]))
            after, until = points[step.earliest - 1].commit, points[step.latest].commit
            commit, change = points[step.at].commit, told(step.change)
            p_value = None if step.p_value is None else min(1.0, step.p_value * tested)
            found.append(Turn(key, commit, after, until, change, interval, p_value))
    return found


def turn_sentence(turn: Turn, metric: str) -> str:
    """Return what a step says: which series, by how much, at which commit, and between which it lies."""
    by = _difference(turn.change, metric)
    if turn.interval is None:
        by += ", exactly"
    else:
        low, high = (_difference(edge, metric) for edge in turn.interval)
        by += f" [{low}, {high}]"
    if turn.p_value is not None:
        by += f", p = {turn.p_value:.2g}" if turn.p_value >= 1e-4 else ", p < 0.0001"
    key = turn.series
    where = f"behind {turn.after}" + (f", at {turn.until} at the latest" if turn.until != turn.commit else "")
    return f"step of {one_line(key.model)} {one_line(key.label)} at {turn.commit}: {by}; {where}"


def history_rows(series: dict[Series, list[Point]], metric: str, marks: Sequence[Turn] = ()) -> list[dict[str, str]]:
    """Return a row a point: commit, mean, interval, change against the point before, and the step that begins there."""
    at = {(turn.series, turn.commit): turn for turn in marks}
    rows = []
    for key, points in series.items():
        before: Point | None = None
        for point in points:
            rows.append(
                {
                    "model": one_line(key.model),
                    "label": one_line(key.label),
                    "suite": key.question,
                    "device": one_line(key.device, LABEL_LIMIT),
                    "commit": point.commit,
                    "first run": f"{point.first:%Y-%m-%d %H:%M}",
                    "n": str(len(point.values)),
                    "mean": value_text(point.mean, metric),
                    "95% interval": NOTHING
                    if point.interval is None
                    else " to ".join(value_text(edge, metric) for edge in point.interval),
                    "change": NOTHING if before is None else _change(before.mean, point.mean, metric),
                    "step": _difference(at[key, point.commit].change, metric) if (key, point.commit) in at else "",
                }
            )
            before = point
    return rows


def value_text(value: float, metric: str) -> str:
    """Return a value with its unit."""
    quantity = quantities_by_metric().get(metric)
    return f"{value:.4f}" if quantity is None else with_unit(value, quantity.unit)


def write_history(series: dict[Series, list[Point]], metric: str, file: Path, marks: Sequence[Turn] = ()) -> Path:
    """Draw the series over the commits, a panel a model, into ``file``, PNG or SVG by its ending, and return it.

    Raises:
        HarnessError: the file cannot be written.
    """
    with common_style():
        return save_as(history_figure(series, metric, marks), file)


def history_figure(series: dict[Series, list[Point]], metric: str, marks: Sequence[Turn] = ()) -> Figure:
    """Return the plot: commits in the order of their first run, means with their intervals, steps as upright lines."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(key.model for key in series))
    figure = Figure(figsize=(PANEL_INCHES[0], PANEL_INCHES[1] * len(models)), layout="constrained")
    panels = figure.subplots(len(models), 1, squeeze=False)
    for model, axis in zip(models, panels[:, 0], strict=True):
        axis.set_title(one_line(model, LABEL_LIMIT))
        chosen = {key: points for key, points in series.items() if key.model == model}
        _draw(axis, chosen, metric, [turn for turn in marks if turn.series in chosen])
    return figure


def _draw(axis: Axes, series: dict[Series, list[Point]], metric: str, marks: Sequence[Turn]) -> None:
    firsts: dict[str, datetime] = {}
    for points in series.values():
        for point in points:
            firsts[point.commit] = min(point.first, firsts.get(point.commit, point.first))
    commits = sorted(firsts, key=firsts.__getitem__)
    quantity = quantities_by_metric().get(metric)

    def drawn(value: float) -> float:
        return value if quantity is None else scaled(value, quantity.unit)

    questions, devices = len({key.question for key in series}) > 1, len({key.device for key in series}) > 1
    names = {
        key: ", ".join([key.label, *([key.question] if questions else []), *([key.device] if devices else [])])
        for key in series
    }
    styles = label_styles(list(names.values()))
    for i, (key, points) in enumerate(series.items()):
        style = styles[names[key]]
        shift = 0.3 * ((i + 0.5) / len(series) - 0.5)  # so that intervals do not hide each other
        x = [commits.index(point.commit) + shift for point in points]
        y = [drawn(point.mean) for point in points]
        edges = [point.interval or (point.mean, point.mean) for point in points]
        errors = [
            [value - drawn(low) for value, (low, _) in zip(y, edges, strict=True)],
            [drawn(high) - value for value, (_, high) in zip(y, edges, strict=True)],
        ]
        axis.errorbar(
            x, y, yerr=errors, color=style.color, marker=style.marker, linestyle=style.line, capsize=3, label=style.name
        )
        for turn in marks:
            if turn.series == key:
                axis.axvline(
                    commits.index(turn.commit) + shift - 0.5, color=style.color, linestyle=":", linewidth=1.2, zorder=0
                )
                if turn.until != turn.commit or commits.index(turn.after) < commits.index(turn.commit) - 1:
                    edges_of_it = commits.index(turn.after) + 0.5, commits.index(turn.until) - 0.5
                    axis.axvspan(*edges_of_it, color=style.color, alpha=0.08, linewidth=0)
    axis.set_xticks(
        range(len(commits)), [commit.replace(" + source ", "+") for commit in commits], rotation=30, ha="right"
    )
    axis.set_ylabel(_axis_title(metric))
    axis.set_xlabel("commit, in the order of the first run")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _axis_title(metric: str) -> str:
    quantity = quantities_by_metric().get(metric)
    if quantity is None:
        return "score, mean over tasks" if metric == SCORE else f"score of {metric}"
    return f"{quantity.title}, {UNITS[quantity.unit][1]}"


def _needed(metric: str) -> str:
    """Return what a metric needs that no run had."""
    quantity = quantities_by_metric().get(metric)
    return ": it is measured on CUDA alone" if quantity is not None and quantity.shown.needs_cuda else ""


def _value(record: Record, metric: str) -> float | None:
    quantity = quantities_by_metric().get(metric)
    if quantity is not None:
        return quantity.read(record)
    scores = [score for score in headline_scores(record) if metric == SCORE or score.is_of(metric)]
    units = {score.unit for score in scores}
    return mean_value(scores) if len(units) == 1 else None


def _series(record: Record, view: View) -> Series:
    cut = f", at most {view.max_steps} steps" if view.max_steps is not None else ""
    limit = f", {view.evaluation.limit} items" if view.evaluation.limit is not None else ""
    question = f"version {view.suite_version}, {view.protocol}{cut}{limit}"
    return Series(record.model_name, record.label, question, view.environment.device)


def commit_of(where: Environment) -> str:
    """Return how a point is called: the commit as far as it is known, and the source of what is not in it."""
    if where.commit is None:
        return f"source {where.source_checksum[:8]}"
    return where.commit[:12] + (f" + source {where.source_checksum[:8]}" if where.dirty else "")


def _change(before: float, after: float, metric: str) -> str:
    if not _as_ratio(metric):
        return _difference(after - before, metric)
    return NOTHING if before == 0 else _difference(after / before - 1, metric)


def _as_ratio(metric: str) -> bool:
    """Return whether changes of a metric are told as fractions of what was."""
    quantity = quantities_by_metric().get(metric)
    return quantity is not None and quantity.unit != "difference"


def _difference(change: float, metric: str) -> str:
    quantity = quantities_by_metric().get(metric)
    if quantity is None:
        return f"{change:+.4f}"
    return f"{100 * change:+.2f}{' pt' if quantity.unit == 'difference' else '%'}"
