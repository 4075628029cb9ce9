"""From the records of one suite to what its report shows: one row a model and label, one run a seed.

Only runs that were asked alike and ran alike share a row or a table: one suite version, protocol, evaluation, bound of
steps and environment (the view), one set of weights a model, one configuration a label. Everything else is left out and
counted in a note that says why. What the suite asks for and has no result is there with its status.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from harness import quantities
from harness.calibration_log import SUITES
from harness.catalogue.tuned import Choice, Tuned
from harness.errors import HarnessError
from harness.proof import Judgement, ending_by, judge_record
from harness.readings import source_of
from harness.record import Record, Score
from harness.report.reading.chosen import ScoreKey, chosen_scores, passed_over_notes
from harness.report.reading.items import ReadItems, no_items
from harness.report.reading.joined import joined, joined_note, scored_anew, with_scored_anew
from harness.report.reading.view import View, choose_view, view_notes
from harness.settings import TuneSettings
from harness.spec import GROUP_ROLE, RunSpec, evaluation_ids
from harness.stand_ins import mark_of
from harness.store import Contents
from harness.suite import Suite, labels_of

ABSENT = "absent"


@dataclass(frozen=True)
class Run:
    """One model, label and seed: what the newest record says of it, or nothing yet."""

    model: str
    label: str
    seed: int
    record: Record | None
    scores: tuple[Score, ...] = ()
    """The record's own and those added later to its weights, of each the one over the most items."""
    files: Mapping[ScoreKey, str | None] = field(default_factory=dict)
    """Of each score the file of its items."""
    evaluations: tuple[Record, ...] = ()
    """Which added scores that stand here."""
    judgings: tuple[Record, ...] = ()
    """Of its MT-Bench answers: the newest of each judge."""

    @property
    def status(self) -> str:
        """Return how the run ended, as its proof is judged now; ``absent`` where there is no record."""
        return self._ending[0]

    @property
    def reason(self) -> str | None:
        """Return why it ended so; None where no reason is recorded, or nothing."""
        return self._ending[1]

    @cached_property
    def judgement(self) -> Judgement | None:
        """Return what its proof shows; None where it did not train to its end."""
        return None if self.record is None else judge_record(self.record)

    @cached_property
    def _ending(self) -> tuple[str, str | None]:
        return (ABSENT, None) if self.record is None else ending_by(self.record, self.judgement)

    @cached_property
    def measured(self) -> tuple[float | None, ...]:
        """Return each of ``quantities.ALL``, read once for every table and file; none without a record."""
        return () if self.record is None else tuple([quantity.read(self.record) for quantity in quantities.ALL])

    @property
    def told_by(self) -> tuple[Record, ...]:
        """Return the records whose figures stand here: the run's own, of scores added later, and of judges."""
        return () if self.record is None else (self.record, *self.evaluations, *self.judgings)

    @property
    def uuid(self) -> str | None:
        """Return the record's own name; None without one."""
        return None if self.record is None else self.record.uuid

    def judged_scores(self, judge: str | None = None) -> tuple[Score, ...]:
        """Return what judges gave to its answers, all or one by its identity."""
        return tuple(
            score
            for record in self.judgings
            if record.judging is not None and judge in (None, record.judging.identity)
            for score in record.scores
        )

    def score(self, column: ScoreColumn) -> Score | None:
        """Return the score of a task and metric, of a group's over the same tasks, or None."""
        place = self.places.get((column.task, column.metric, column.subtasks))
        return None if place is None else self.scores[place]

    @cached_property
    def places(self) -> Mapping[tuple[str, str | None, tuple[str, ...]], int]:
        """Return where each score stands among them."""
        return _places_of(tuple(score.key for score in self.scores))


@lru_cache(maxsize=1024)
def _places_of(keys: tuple[ScoreKey, ...]) -> Mapping[tuple[str, str | None, tuple[str, ...]], int]:
    """Return where each score stands among others, the same for all runs that were scored alike."""
    return {key: place for place, key in enumerate(keys)}


@dataclass(frozen=True, slots=True)
class _OwnFile(Mapping[ScoreKey, str | None]):
    """The file of its items for each score of a record to which none was added."""

    record: Record

    def __getitem__(self, key: ScoreKey) -> str | None:
        if all(score.key != key for score in self.record.scores):
            raise KeyError(key)
        return self.record.items

    def __iter__(self) -> Iterator[ScoreKey]:
        return (score.key for score in self.record.scores)

    def __len__(self) -> int:
        return len(self.record.scores)


@dataclass(frozen=True)
class Row:
    """One label on one model, over its seeds."""

    model: str
    label: str
    runs: tuple[Run, ...]
    choice: Choice | None = None
    """Where its learning rate comes from, when harness tune chose it."""
    read_items: ReadItems = no_items
    """Returns a file of items; without it several seeds have no interval."""

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Return the records with a result."""
        return tuple(run.record for run in self.runs if run.record is not None and run.status == "ok")

    @cached_property
    def estimates(self) -> dict[Hashable, Any]:
        """Return a place for what is estimated from the scores: every table and plot asks for it again."""
        return {}

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """Return the runs with a result."""
        return tuple(run for run in self.runs if run.status == "ok")

    def scores(self, column: ScoreColumn) -> Sequence[Score | None]:
        """Return the score of a task and metric of each run with a result, or None; see :meth:`Run.score`."""
        key = "scores", column.task, column.metric, column.subtasks
        if key not in self.estimates:
            self.estimates[key] = self._scores(column)
        found: Sequence[Score | None] = self.estimates[key]
        return found

    def _scores(self, column: ScoreColumn) -> Sequence[Score | None]:
        layouts = self._layouts
        if len(layouts) != 1:
            return [run.score(column) for run in self.finished]
        place = layouts[0].get((column.task, column.metric, column.subtasks))
        if place is None:
            return [None] * len(self.finished)
        return [run.scores[place] for run in self.finished]

    @cached_property
    def _layouts(self) -> tuple[Mapping[tuple[str, str | None, tuple[str, ...]], int], ...]:
        """Return where the scores of runs with a result stand: of those that were scored alike it is one object."""
        return tuple({id(places): places for places in (run.places for run in self.finished)}.values())

    @property
    def spec(self) -> RunSpec | None:
        """Return what was asked of the label, of all seeds alike; None while nothing of it was recorded."""
        return next((run.record.spec for run in self.runs if run.record is not None), None)

    @property
    def trains(self) -> bool | None:
        """Return whether the label trains; None while nothing of it was recorded."""
        return None if (spec := self.spec) is None else spec.train is not None


@dataclass(frozen=True)
class ScoreColumn:
    """A task and metric of the score table."""

    task: str
    metric: str | None
    """None for a task that the suite asks for and nothing has scored yet."""
    in_average: bool
    subtasks: tuple[str, ...] = ()
    """Of a group the tasks that it is over."""
    on_files: bool = False
    """Whether rows of a file stand in for lm-eval's own."""


@dataclass(frozen=True)
class Summary:
    """What the report of one suite shows."""

    suite: Suite
    view: View
    rows: tuple[Row, ...]
    columns: tuple[ScoreColumn, ...]
    left_out: tuple[Run, ...]
    """The newest record of each run that is not in the rows."""
    failed_evaluations: tuple[tuple[str, Run], ...]
    """Of which record, and what came of it."""
    notes: tuple[str, ...]
    grid: TuneSettings | None = None
    """Of the choices in the rows."""

    @property
    def models(self) -> tuple[str, ...]:
        """Return the models in the order of the rows."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def lone_group(self) -> ScoreColumn | None:
        """Return the group that is all of the average, whose own column then says it; None: there is no such."""
        entering = [column for column in self.columns if column.in_average]
        return entering[0] if len(entering) == 1 and entering[0].subtasks else None

    def has_records(self, model: str) -> bool:
        """Return whether anything of a model was recorded."""
        return any(run.record is not None for row in self.rows_of(model) for run in row.runs)

    def stand_ins(self, model: str) -> str:
        """Return what is to be read behind a model's name: what stood in its place, and in that of its data sets."""
        return mark_of(run.record.spec for row in self.rows_of(model) for run in row.runs if run.record is not None)

    def heading(self, model: str) -> str:
        """Return a model's name with what stood in its place, and in that of its runs' data sets."""
        return model + self.stand_ins(model)

    def rows_of(self, model: str) -> tuple[Row, ...]:
        """Return the rows of one model."""
        return tuple(row for row in self.rows if row.model == model)


def summarize(
    suite: Suite, contents: Contents, tuned: Tuned | None = None, read_items: ReadItems | None = None
) -> Summary:
    """Return what the report shows of a suite's records.

    Args:
        suite: As it is asked for now.
        contents: The records.
        tuned: The learning rates that the suite takes from a file.
        read_items: Returns a file of items; None: there are none, and several seeds have no interval.

    Raises:
        HarnessError: there is no record of the suite.
    """
    recorded = [record for record in contents.records if record.suite == suite.name]
    records = joined(recorded)
    said_of_joined = joined_note(recorded, records)
    newest = newest_records([record for record in records if record.is_run])
    anew = _scored_anew(suite, newest, records)
    if anew:
        records = with_scored_anew(records, anew)
        newest = newest_records([record for record in records if record.is_run])
    if not newest:
        raise HarnessError(f"there is no record of suite '{suite.name}' to report; run it with: {_command(suite)}")
    view = choose_view(suite, newest)
    shown, left_out, reasons = _split(view, newest)
    added, failed = _added_scores(view, [record for record in records if not record.is_run], shown, reasons)
    runs = {
        (record.model_name, record.label, record.seed): _run(record, added.get(record.uuid, ())) for record in shown
    }
    rows = tuple(
        replace(row, choice=_choice(row, tuned, suite), read_items=read_items or no_items) for row in _rows(suite, runs)
    )
    notes = [
        f"{count} {'record is' if count == 1 else 'records are'} left out of the tables: {reason}."
        for reason, count in reasons.items()
    ]
    notes += view_notes(suite, view) + _data_notes(shown) + said_of_joined
    notes += passed_over_notes((record, added.get(record.uuid, ())) for record in shown)
    superseded = sum(record.is_run for record in records) - len(newest)
    if superseded:
        notes.append(f"Of runs recorded more than once the newest outcome counts; older records: {superseded}.")
    notes += list(contents.warnings)
    left = tuple(_run(record, ()) for record in left_out)
    columns = _columns(suite, rows)
    notes += _uneven_notes(rows, columns)
    return Summary(suite, view, rows, columns, left, failed, tuple(notes), suite.tune)


def _scored_anew(suite: Suite, newest: Sequence[Record], records: Sequence[Record]) -> dict[str, Record]:
    """Return the runs whose kept weights were scored as the table shows them; none where it shows what they were."""
    if not newest or all(record.is_run for record in records):
        return {}
    asked = evaluation_ids([record.spec for record in newest])
    asked |= evaluation_ids([record.spec for record in records if record.evaluation_settings == suite.evaluation])
    anew = scored_anew(records, asked)
    if not anew:
        return {}
    view = choose_view(suite, sorted([*newest, *anew.values()], key=lambda record: record.in_time))
    return {uuid: run for uuid, run in anew.items() if not view.differences(run)}


def newest_records(records: Iterable[Record]) -> list[Record]:
    """Return one record a run and environment: the newest outcome, else the newest, in the order of time."""
    kept: dict[tuple[str, str], Record] = {}
    for record in records:
        known = kept.get(record.attempted)
        if known is None or record.has_outcome() or not known.has_outcome():
            kept[record.attempted] = record
    return sorted(kept.values(), key=lambda record: record.in_time)


def _split(view: View, records: Sequence[Record]) -> tuple[list[Record], list[Record], Counter[str]]:
    """Return the records of the view, the others, and the reasons for these."""
    reasons: Counter[str] = Counter()
    shown, left_out = [], []
    weights: dict[str, dict[str, str | None]] = {}
    firsts: dict[tuple[str, str], RunSpec] = {}
    told = [view.differences(record) for record in records]
    precisions = _trained_precisions(record for record, found in zip(records, told, strict=True) if not found)
    for record, differences in zip(reversed(records), reversed(told), strict=True):
        model, label = record.model_name, record.label
        if differences:
            reason = ", ".join(differences)
        elif weights.setdefault(model, record.spec.model) != record.spec.model:
            reason = f"other weights under the name {model} than its newest record"
        elif record.train_settings is None and record.scored_dtype not in precisions.get(model, {record.scored_dtype}):
            reason = (
                f"label {label} scored in {record.scored_dtype}, where what was trained from {model} is scored in "
                f"{' and '.join(sorted(precisions[model]))}"
            )
        elif not firsts.setdefault((model, label), record.spec).asks_as(record.spec, "evaluation"):
            reason = f"other settings of label {label} than its newest record"
        else:
            shown.append(record)
            continue
        reasons[reason] += 1
        left_out.append(record)
    return shown[::-1], left_out[::-1], reasons


def _trained_precisions(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return in which precisions the trained runs of each model were scored."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.train_settings is not None:
            found[record.model_name].add(record.scored_dtype)
    return dict(found)


def _added_scores(
    view: View, evaluations: Sequence[Record], shown: Sequence[Record], reasons: Counter[str]
) -> tuple[dict[str, list[Record]], tuple[tuple[str, Run], ...]]:
    """Return evaluations of shown records, by the record's uuid, and those without a result with it.

    A judging that failed is none of these once the same judge has done it.
    """
    uuids = {record.uuid for record in shown}
    added: dict[str, list[Record]] = defaultdict(list)
    failed: list[tuple[str, Record]] = []
    for record in evaluations:
        differences = view.differences(record)
        if differences:
            reasons[", ".join(differences)] += 1
        elif record.of is None or record.of not in uuids:
            reasons["an evaluation of weights whose run is not in the tables"] += 1
        elif not record.is_ok:
            failed.append((record.of, record))
        else:
            added[record.of].append(record)
    done = {_judged(record) for records in added.values() for record in records if record.judging is not None}
    return added, tuple((of, _run(record, ())) for of, record in failed if _judged(record) not in done)


def _judged(record: Record) -> tuple[str | None, str | None]:
    """Return whose answers were judged, and by whom."""
    return record.of, None if record.judging is None else record.judging.judge


def _run(record: Record, added: Sequence[Record]) -> Run:
    if not added and len(_places_of(tuple(score.key for score in record.scores))) == len(record.scores):
        return Run(record.model_name, record.label, record.seed, record, record.scores, _OwnFile(record))
    chosen = chosen_scores(record, added)
    judgings = {judged.judging.identity: judged for judged in added if judged.judging is not None}
    evaluations = {one.evaluation.uuid: one.evaluation for one in chosen.values() if one.evaluation is not None}
    return Run(
        record.model_name,
        record.label,
        record.seed,
        record,
        tuple(one.score for one in chosen.values()),
        {key: one.items for key, one in chosen.items()},
        tuple(evaluations.values()),
        tuple(judgings.values()),
    )


def _command(suite: Suite) -> str:
    """Return what runs a suite."""
    return "harness calibrate" if suite.name == SUITES["full"] else f"harness run --suite {suite.name}"


def _rows(suite: Suite, runs: dict[tuple[str, str, int], Run]) -> tuple[Row, ...]:
    seeds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for model, label, seed in runs:
        seeds[model, label].append(seed)
    rows = []
    for model in (*suite.models, *sorted({model for model, _ in seeds} - set(suite.models))):
        asked = labels_of(suite, model)
        others = sorted(label for m, label in seeds if m == model and label not in asked)
        in_suite = asked if model in suite.models else tuple(label for label in asked if (model, label) in seeds)
        for label in (*in_suite, *others):
            found = seeds.get((model, label), [])
            wanted = suite.seeds if model in suite.models and label in asked else ()
            if any((record := runs[model, label, seed].record) and record.train_settings is None for seed in found):
                wanted = ()  # a label without training runs once a model, whatever its seed
            both = dict.fromkeys((*wanted, *sorted(found)))
            rows.append(
                Row(
                    model,
                    label,
                    tuple(runs.get((model, label, seed)) or Run(model, label, seed, None) for seed in both),
                )
            )
    return tuple(rows)


def _choice(row: Row, tuned: Tuned | None, suite: Suite) -> Choice | None:
    """Return the choice that the recorded runs of a row were made with, unless it was made on something else."""
    choice = None if tuned is None else tuned.choice(row.model, row.label)
    specs = [run.record.spec for run in row.runs if run.record is not None]
    if choice is None or suite.tune is None:
        return None
    if {None if spec.train is None else spec.train.learning_rate for spec in specs} != {choice.learning_rate}:
        return None
    return None if any(choice.refusal(spec, suite.tune.max_steps) for spec in specs) else choice


def _columns(suite: Suite, rows: Sequence[Row]) -> tuple[ScoreColumn, ...]:
    """Return the headline metrics in the suite's order of tasks; those added later, of other tasks, after.

    The same metric through another filter, as GSM8K's flexible match, stands beside it, and a group's categories before
    it; they enter no average. A group or a tag of one's own that takes no mean has its tasks' columns and none itself.
    """
    specs = [run.record.spec for row in rows for run in row.finished if run.record is not None]
    by_roles = {tuple(spec.sources): spec for spec in specs}
    of_files = {task for spec in by_roles.values() for task in spec.stands_in}
    roles = {role for roles in by_roles for role in roles}
    filtered: dict[str, dict[str, None]] = defaultdict(dict)
    groups: dict[tuple[str, str, tuple[str, ...]], None] = {}
    found: dict[str, dict[tuple[str, tuple[str, ...]], bool]] = defaultdict(dict)
    seen: set[Hashable] = set()
    for row in rows:
        for run in row.finished:
            assert run.record is not None
            if run.scores is run.record.scores:  # nothing was added: what others like it say, it says too
                alike = id(run.places), tuple([score.headline for score in run.scores])
                if alike in seen:
                    continue
                seen.add(alike)
            own = {score.key for score in run.record.scores}
            for score in run.scores:
                task, metric, subtasks = score.key
                if score.headline:
                    key = metric, subtasks
                    found[task][key] = found[task].get(key, False) or score.key in own
                elif subtasks:
                    groups[score.key] = None
                elif "," in metric:
                    filtered[task][metric] = None
    columns: list[ScoreColumn] = []
    for task in dict.fromkeys((*suite.evaluation.tasks, *found)):
        asked = task in suite.evaluation.tasks
        metrics = found.get(task)
        if not metrics:
            if GROUP_ROLE + task not in roles:
                columns.append(ScoreColumn(task, None, asked))
            continue
        asked = asked and not any(metrics.values())
        for (metric, subtasks), in_run in metrics.items():
            columns += _categories(groups, metric, subtasks)
            columns.append(ScoreColumn(task, metric, asked or in_run, subtasks))
        names = {metric for metric, _ in metrics}
        columns += [
            ScoreColumn(task, other, False)
            for other in filtered[task]
            if other not in names and other.partition(",")[0] in {name.partition(",")[0] for name in names}
        ]
    return tuple(replace(column, on_files=column.task in of_files) for column in dict.fromkeys(columns))


def _categories(
    groups: Iterable[tuple[str, str, tuple[str, ...]]], metric: str, subtasks: tuple[str, ...]
) -> list[ScoreColumn]:
    """Return the categories of a group, each over the most of its tasks that there is a score of."""
    found: dict[str, tuple[str, ...]] = {}
    for task, its_metric, members in groups:
        if its_metric == metric and set(members) <= set(subtasks) and len(members) > len(found.get(task, ())):
            found[task] = members
    return [ScoreColumn(task, metric, False, members) for task, members in found.items()]


def _uneven_notes(rows: Sequence[Row], columns: Sequence[ScoreColumn]) -> list[str]:
    """Return a note for each column of which a model's cells are over unlike numbers of items."""
    notes = []
    for column in columns:
        for model in dict.fromkeys(row.model for row in rows):
            counts: dict[int, set[str]] = defaultdict(set)
            for row in rows:
                for n in {score.n for score in row.scores(column) if score is not None} if row.model == model else ():
                    counts[n].add(row.label)
            if len(counts) > 1:
                told = "; ".join(f"{n} items: {', '.join(sorted(counts[n]))}" for n in sorted(counts, reverse=True))
                notes.append(f"Scores of {column.task} on {model} are not over the same items: {told}.")
    return list(dict.fromkeys(notes))


def _data_notes(records: Sequence[Record]) -> list[str]:
    """Return a note for each data set of which the shown runs saw more than one copy."""
    copies: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        names: dict[str, str] = {}
        if record.evaluation_settings.rows is not None:
            names["evaluation"] = record.evaluation_settings.rows
        if record.train_settings is not None:
            names["train"] = record.train_settings.data
        for role, name in names.items():
            copies[f"{role} data {name}"][source_of(record, role) or name].add(record.label)
    return [
        f"Not all labels saw the same {what}: "
        + "; ".join(f"{source} ({', '.join(sorted(labels))})" for source, labels in sorted(sources.items()))
        + "."
        for what, sources in copies.items()
        if len(sources) > 1
    ]
