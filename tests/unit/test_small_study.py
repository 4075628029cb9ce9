"""The small study's page says what its records say: every table of it is the report's or a command's on the page."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest

from harness.catalogue.tuned import best_rate
from harness.cli import main
from harness.expansion import load_suite, load_tuned
from harness.record import Record
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.reading.sides import items_beside
from harness.report.reading.summary import summarize
from harness.store import Store
from tests.documents import blocks

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "records"
PAGE = ROOT / "docs" / "small-study.md"
SUITE = load_suite("small-study")


def tables_of(text: str) -> list[tuple[str, ...]]:
    """Return every table of a Markdown text, as its lines."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [tuple(table) for table in found if table]


@pytest.fixture(scope="module")
def records() -> tuple[Record, ...]:
    return Store(RECORDS).read(SUITE.name).records


@pytest.fixture(scope="module")
def trials() -> tuple[Record, ...]:
    return Store(RECORDS).read(f"{SUITE.name}-tune").records


@pytest.fixture(scope="module")
def reported() -> str:
    items = items_beside(RECORDS)
    summary = summarize(SUITE, Store(RECORDS).read(SUITE.name), load_tuned(SUITE.name, SUITE), items.items)
    assert not items.warnings
    return markdown(report_document(summary, {}, items.items), ROOT)


def test_every_run_has_a_result_whose_proof_holds(records: tuple[Record, ...]) -> None:
    runs = Counter(record.spec.label for record in records)
    assert set(runs.values()) == {1, len(SUITE.seeds)} and runs.pop("base") == 1
    assert len(runs) == 9 and {record.status for record in records} == {"ok"}
    assert {record.spec.seed for record in records} == set(SUITE.seeds)
    assert all(score.n is not None and score.n >= 100 for record in records for score in record.scores)
    assert len({record.environment_id for record in records}) == 1


def test_every_label_was_tried_at_the_same_rates_with_one_seed_that_no_run_has(trials: tuple[Record, ...]) -> None:
    assert SUITE.tune is not None and {record.status for record in trials} == {"ok"}
    tried: dict[str, list[float]] = {}
    for record in trials:
        assert record.spec.train is not None and record.spec.seed not in SUITE.seeds and not record.scores
        label, _, rest = record.spec.label.partition("learning_rate=")
        number = rest.partition(",")[0].partition("]")[0]
        tried.setdefault(label + rest.removeprefix(number), []).append(record.spec.train.learning_rate)
    assert len(tried) == 9
    assert all(sorted(rates) == sorted(SUITE.tune.learning_rates) for rates in tried.values())


def test_the_tuned_file_is_what_the_trials_say(trials: tuple[Record, ...], records: tuple[Record, ...]) -> None:
    tuned = load_tuned(SUITE.name, SUITE)
    assert tuned is not None
    by_id = {record.run_id: record for record in trials}
    for choice in tuned.choices:
        assert choice.learning_rate == best_rate(choice.trials)
        for trial in choice.trials:
            train = by_id[trial.run_id].train
            assert train is not None and train.validation_loss_after == trial.validation_loss
    chosen = {choice.label: choice.learning_rate for choice in tuned.choices}
    for record in records:
        if record.spec.train is not None:
            assert record.spec.train.learning_rate == chosen[record.spec.label]


def test_every_table_of_the_page_is_the_reports_or_a_commands_of_the_page(
    reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = set(tables_of(reported))
    for block in blocks(PAGE):
        for words in block.commands:
            if "--table" in words:
                assert main([*words[1:], "--results", str(RECORDS)]) == 0, shlex.join(words)
                known |= set(tables_of(capsys.readouterr().out))
    shown = tables_of(PAGE.read_text(encoding="utf-8"))
    assert len(shown) > 4
    for table in shown:
        assert table in known, "\n".join(table)
