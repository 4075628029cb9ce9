"""The small study's page says what its records say: every table of it is the report's or a command's on the page."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
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


def test_memory_is_what_was_predicted_to_the_byte_as_the_page_says(records: tuple[Record, ...]) -> None:
    grows = {"lisa", "owlore", "ows-fullrank", "badam"}
    for record in records:
        if (train := record.train) is None:
            continue
        assert record.prediction is not None and train.tracked_peak is not None
        assert train.peak_optimizer_state_bytes == record.prediction.optimizer_state_bytes
        alike = train.tracked_peak.at_peak.total_bytes == record.prediction.peak_bytes
        assert alike == (record.spec.label.partition("[")[0] not in grows)


def test_what_the_grid_may_have_cost_is_as_the_page_says() -> None:
    tuned = load_tuned(SUITE.name, SUITE)
    assert tuned is not None
    cost: dict[str, float] = {}
    for choice in tuned.choices:
        ordered = sorted(choice.trials, key=lambda trial: trial.learning_rate)
        best = min(range(len(ordered)), key=lambda i: ordered[i].validation_loss or math.inf)
        assert 0 < best < len(ordered) - 1  # at no edge of the grid
        three = ordered[best - 1 : best + 2]
        losses = [trial.validation_loss or math.nan for trial in three]
        a, b, c = np.polyfit([math.log(trial.learning_rate) for trial in three], losses, 2)
        cost[choice.label] = losses[1] - (c - b**2 / (4 * a))
    named = {"lora[rank=32]": 0.042, "lora[rank=272]": 0.032, "ows-fullrank[active_layers=5]": 0.025, "full": 0.008}
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for label, value in named.items():
        assert cost.pop(label) == pytest.approx(value, abs=0.0005)
        assert f"{value} nats (`{label}`)" in page or f"{value} (`{label}`)" in page
    assert max(cost.values()) < 0.004


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
