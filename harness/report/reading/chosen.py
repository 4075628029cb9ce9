"""Which score stands for a run where its weights were scored more than once: the one over the most items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.record import Record, Score

ScoreKey = tuple[str, str, tuple[str, ...]]
"""Task, metric, and of a group its tasks."""


@dataclass(frozen=True)
class Chosen:
    """A score and where its items are."""

    score: Score
    items: str | None
    evaluation: Record | None = None
    """Which added it; None: the run's own."""


def chosen_scores(record: Record, added: Sequence[Record]) -> dict[ScoreKey, Chosen]:
    """Return a run's scores by key, its own first: of the same question the one over the most items, then the newest.

    A score that was asked for in other words, by the task's version or the number of shots, is no answer to the run's
    question and takes no place of its own scores.

    Args:
        record: Of the run.
        added: Later evaluations of its weights, in the order of time; judgings among them are passed over.
    """
    return _choose(record, added)[0]


def own_scores(record: Record, added: Sequence[Record]) -> Iterable[tuple[Score, str | None]]:
    """Return a run's scores with the files of their items: those of :func:`chosen_scores`."""
    if not added and len({score.key for score in record.scores}) == len(record.scores):
        return [(score, record.items) for score in record.scores]
    return [(one.score, one.items) for one in chosen_scores(record, added).values()]


def passed_over_notes(runs: Iterable[tuple[Record, Sequence[Record]]]) -> list[str]:
    """Return a sentence for each task of which later evaluations of some runs are not shown, with why."""
    counted: Counter[str] = Counter()
    for record, added in runs:
        if added:
            counted.update(_choose(record, added)[1])
    return [f"Not shown: {count} {'score' if count == 1 else 'scores'} {why}." for why, count in counted.items()]


def _choose(record: Record, added: Sequence[Record]) -> tuple[dict[ScoreKey, Chosen], list[str]]:
    chosen = {score.key: Chosen(score, record.items) for score in record.scores}
    passed_over: list[str] = []
    for later in added:
        for score in later.scores if later.judging is None else ():
            known = chosen.get(score.key)
            if known is not None and (unlike := _unlike(known.score, score)):
                passed_over += [f"of {record.label} on {score.task}, added with {unlike}"] * score.headline
            elif known is None or score.n >= known.score.n:
                if known is not None and score.n > known.score.n and score.headline:
                    passed_over.append(_fewer(record, known.score, score))
                chosen[score.key] = Chosen(score, later.items, later)
            elif score.headline:
                passed_over.append(_fewer(record, score, known.score))
    return chosen, passed_over


def _fewer(record: Record, less: Score, more: Score) -> str:
    return f"of {record.label} on {less.task}, over {less.n} items where another is over {more.n}"


def _unlike(known: Score, score: Score) -> str:
    """Return by what a score answers another question than the known one; nothing where it is the same."""
    found = []
    for what in ("task_version", "num_fewshot"):
        ours, theirs = getattr(known, what), getattr(score, what)
        if ours != theirs:
            found.append(f"{what} {theirs} instead of {ours}")
    return ", ".join(found)
