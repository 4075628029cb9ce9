"""Two sets of records, or of pytest-benchmark's documents, cell by cell: what became worse beyond its tolerance.

A cell is one metric of one label on one model, over seeds and repeats. It is worse when a one-sided test rejects that
it worsened by no more than the tolerance, at one family-wise level over the whole comparison: Holm's correction, with
the level shared evenly between the metrics that are judged, so that many tasks do not take it from the one step time.
Where there is a single value on either side, or none of the values differ, the tolerance alone decides, and the cell
says so. ``improved`` is the same in the other direction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness.errors import HarnessError
from harness.record import Record
from harness.report.comparing.cells import RUN, Cell, Comparison, OpenCell, Verdict
from harness.report.comparing.measures import SCORE, metric_of, scored_tasks
from harness.report.comparing.ratios import SINGLE, measured_cells
from harness.report.comparing.scores import Tasks, score_change
from harness.report.comparing.subjects import (
    Key,
    ScoreSample,
    Subject,
    differences,
    subjects_of_benchmarks,
    subjects_of_records,
)
from harness.report.comparing.tolerances import BENCHMARK_TOLERANCES, Tolerance, parse_tolerances, usual_tolerances
from harness.report.reading.sides import Side
from harness.report.reading.words import status_words
from harness.report.statistics.family import holm

NOT_AN_END = "interrupted"
SAME_RECORDS = "both sides hold the same records: nothing was measured again"


def compare_sides(baseline: Side, candidate: Side, fail_on: str | None = None, level: float = 0.05) -> Comparison:
    """Return the comparison of two sides.

    Args:
        baseline: What was.
        candidate: What is.
        fail_on: Tolerances, which also say what is judged; None: the usual ones of records or of benchmarks.
        level: Family-wise, of the whole comparison.

    Raises:
        HarnessError: the sides are of different kinds, or a tolerance is wrong.
    """
    if bool(baseline.benchmarks) != bool(candidate.benchmarks):
        raise HarnessError("one side is pytest-benchmark's and the other holds records; compare like with like")
    notes: list[str] = []
    if baseline.benchmarks:
        old = subjects_of_benchmarks(baseline.benchmarks, baseline.name)
        new = subjects_of_benchmarks(candidate.benchmarks, candidate.name)
    else:
        old, left_old = subjects_of_records(baseline.records, candidate.records)
        new, left_new = subjects_of_records(candidate.records, baseline.records)
        for side, left in ((baseline, left_old), (candidate, left_new)):
            notes += [f"{side.name}: {count} runs left out, {why}." for why, count in left.items()]
    tasks = scored_tasks(s.score for side in (old, new) for x in side.values() for v in x.scores.values() for s in v)
    if fail_on is None and not baseline.benchmarks:
        tolerances = usual_tolerances()
    else:
        tolerances = parse_tolerances(BENCHMARK_TOLERANCES if fail_on is None else fail_on, tasks)

    cells: list[Cell] = []
    both: list[tuple[Subject, Subject]] = []
    seeds = [_seeds_by_record(side.records) for side in (baseline, candidate)]
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key), new.get(key)
        if before is None or after is None:
            subject = before or after
            assert subject is not None
            cells.append(Cell(key, subject.title, RUN, RUN, "missing" if after is None else "new"))
        elif unlike := differences(before.conditions, after.conditions):
            said = "; ".join(f"{name}: {one} -> {other}" for name, one, other in unlike)
            cells.append(Cell(key, before.title, RUN, RUN, "not comparable", basis=said))
        elif after.repeats(before):
            cells.append(Cell(key, before.title, RUN, RUN, "not measured again", basis=SAME_RECORDS))
        elif lost := _lost_seeds(*(side.get(key, {}) for side in seeds)):
            said = f"the newer records of seed {', '.join(map(str, lost))} are gone; no other record is new"
            cells.append(Cell(key, before.title, RUN, RUN, "missing", basis=said))
        else:
            both.append((before, after))
            cells += _run_cells(before, after)
    found = [*measured_cells(both, tolerances, asked=fail_on is not None)]
    for before, after in both:
        found += _scored(before, after, tolerances, (baseline, candidate))
        for side in (baseline, candidate):
            side.forget_items()  # those of one subject at a time
    cells += [one for one in found if isinstance(one, Cell)]
    cells += _corrected([one for one in found if isinstance(one, OpenCell)], level)
    settings = [(x.title, *change) for x, y in both for change in differences(x.settings, y.settings)]
    return Comparison(
        baseline.name,
        candidate.name,
        level,
        tuple(cells),
        tuple(_changed_environment(both)),
        tuple(settings),
        tuple(notes + baseline.warnings + candidate.warnings),
        tuple(baseline.damage + candidate.damage),
    )


def _seeds_by_record(records: Sequence[Record]) -> Mapping[Key, Mapping[str, int]]:
    """Return the seed of each run by its record, of each subject."""
    found: dict[Key, dict[str, int]] = defaultdict(dict)
    for record in records:
        if record.is_run:
            found[record.suite, record.model_name, record.label][record.uuid] = record.seed
    return found


def _lost_seeds(old: Mapping[str, int], new: Mapping[str, int]) -> list[int]:
    """Return the seeds that only the baseline of a subject has, where the candidate has no record of its own."""
    return sorted(set(old.values()) - set(new.values())) if new.keys() < old.keys() else []


def _run_cells(old: Subject, new: Subject) -> Iterator[Cell]:
    """Yield whether runs that had a result have one still, and the other way round."""
    here = {seed: status for seed, (status, _) in new.statuses.items() if status != NOT_AN_END}
    failed = [s for s, (status, _) in old.statuses.items() if status == "ok" and here.get(s, "ok") != "ok"]
    fixed = [s for s, (status, _) in old.statuses.items() if status != "ok" and here.get(s) == "ok"]
    absent = [s for s, (status, _) in old.statuses.items() if status == "ok" and s not in here]
    others = [s for s, status in here.items() if s not in old.statuses and status == "ok"]
    if absent and len(others) >= len(absent):  # as many runs as before, and what they measured is compared
        said = f"other seeds: {', '.join(map(str, sorted(absent)))} -> {', '.join(map(str, sorted(others)))}"
        yield Cell(old.key, old.title, RUN, RUN, "new", basis=said)
        absent = []
    still = [s for s, (status, _) in old.statuses.items() if status != "ok" and here.get(s, "ok") != "ok"]
    groups: tuple[tuple[Verdict, list[int]], ...] = (
        ("failed", failed),
        ("fixed", fixed),
        ("missing", absent),
        ("same", still),
    )
    for verdict, seeds in groups:
        if seeds:
            yield Cell(old.key, old.title, RUN, RUN, verdict, basis=_said(old, new, seeds))


def _said(old: Subject, new: Subject, seeds: Sequence[int]) -> str:
    parts = []
    for seed in sorted(seeds):
        (before, _), (after, reason) = old.statuses[seed], new.statuses.get(seed, ("absent", None))
        why = f" ({reason})" if reason else ""
        parts.append(f"seed {seed}: {status_words(before)} -> {status_words(after)}{why}")
    return "; ".join(parts)


def _scored(
    old: Subject, new: Subject, tolerances: Mapping[str, Tolerance], sides: tuple[Side, Side]
) -> Iterator[OpenCell | Cell]:
    """Yield a cell a task, and one for their average where there are several."""
    averaged: list[str] = []
    for title in dict.fromkeys((*old.scores, *new.scores)):
        before, after = old.scores.get(title, []), new.scores.get(title, [])
        score = (before or after)[0].score
        tolerance = tolerances.get(metric_of(score, tolerances))
        if tolerance is None:
            continue
        cell = Cell(old.key, old.title, SCORE, title, "same", tolerance=tolerance)
        if not before or not after:
            if old.has_result and new.has_result:
                yield replace(cell, verdict="missing" if before else "new", basis="not scored")
            continue
        unlike = _unlike(before, after)
        if unlike:
            yield replace(cell, verdict="not comparable", basis=unlike)
            continue
        if score.is_fraction and score.higher_is_better:
            averaged.append(title)
        alone = {title: old.scores_by_seed(title)}, {title: new.scores_by_seed(title)}
        yield from _score_cell(cell, *alone, sides)
    if len(averaged) > 1 and (tolerance := tolerances.get(SCORE)) is not None:
        cell = Cell(old.key, old.title, SCORE, f"average of {len(averaged)} tasks", "same", tolerance=tolerance)
        before_all, after_all = ({title: side.scores_by_seed(title) for title in averaged} for side in (old, new))
        yield from _score_cell(cell, before_all, after_all, sides)


def _unlike(before: Sequence[ScoreSample], after: Sequence[ScoreSample]) -> str:
    """Return why two scores of one name are not of one thing; nothing where they are."""
    versions = [", ".join(sorted({sample.score.task_version for sample in side})) for side in (before, after)]
    if versions[0] != versions[1]:
        return f"task version: {versions[0]} -> {versions[1]}"
    members = [{sample.score.subtasks for sample in side} for side in (before, after)]
    return "the group is over other tasks" if members[0] != members[1] else ""


def _score_cell(
    cell: Cell,
    before: Tasks,
    after: Tasks,
    sides: tuple[Side, Side],
) -> Iterator[OpenCell | Cell]:
    found = score_change(before, after, sides)
    if found is None:
        return
    told = replace(
        cell,
        baseline=found.baseline,
        candidate=found.candidate,
        change=found.candidate - found.baseline,
        scale=found.scale,
        fewest_p_value=found.fewest_p_value,
        basis=found.basis,
    )
    if found.change is None:
        yield replace(told, basis=SINGLE).decided(found.worsening)
    elif found.change.is_exact:
        yield told.decided(found.worsening)
    else:
        yield OpenCell(told, found.change, found.least_p_value)


def _corrected(opened: Sequence[OpenCell], level: float) -> Iterator[Cell]:
    """Yield the tested cells with their verdicts, under one correction in each direction."""
    sizes = Counter(one.cell.metric for one in opened)
    weights = [1 / sizes[one.cell.metric] for one in opened]
    worse = [max(one.least_p_value, one.change.p_beyond(one.cell.limit())) for one in opened]
    better = [one.change.reversed().p_beyond(one.cell.limit()) for one in opened]
    adjusted = zip(holm(worse, weights), holm(better, weights), strict=True)
    for one, weight, (p_worse, p_better) in zip(opened, weights, adjusted, strict=True):
        verdict: Verdict = "worse" if p_worse <= level else "improved" if p_better <= level else "same"
        share = level * weight / len(sizes)
        yield replace(one.cell, verdict=verdict, p_value=p_worse, test=one.change, level=share)


def _changed_environment(both: Sequence[tuple[Subject, Subject]]) -> list[tuple[str, str, str]]:
    """Return what differs between the environments of the compared subjects, each name once."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for old, new in both:
        for name, before, after in differences(old.environment, new.environment):
            one, other = found.setdefault(name, ({}, {}))
            one[before] = other[after] = None
    return [(name, ", ".join(one), ", ".join(other)) for name, (one, other) in found.items()]
