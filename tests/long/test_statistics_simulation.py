"""The statistics by simulation: false alarms of a whole comparison, slowdowns caught, intervals that cover.

A comparison has 48 cells: six labels, each with step time, memory, five tasks and their average. Times and the host's
memory have lognormal noise of 1% in five runs a side; the optimizer's state has the same bytes in each, as the
allocator's peak has on a GPU. A task has 100 items, of which each changes its outcome with 6% probability. The
comparison is the real one, from records to verdicts.
"""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.record import Record, Score
from harness.report.comparing.cells import Comparison
from harness.report.comparing.compare import compare_sides
from harness.report.reading.sides import Side
from harness.report.statistics.blocked import blocked_means
from harness.report.statistics.changes import log_changes
from harness.report.statistics.family import holm
from harness.report.statistics.intervals import t_interval
from harness.report.statistics.means import mean_interval
from harness.report.statistics.pairs import compare_methods

pytestmark = pytest.mark.long

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "unit" / "fixtures_report" / "factory.py")))
NEW = make.CPU.model_copy(update={"source_checksum": "f" * 64})
LABELS = ("full", "lora", "galore", "lisa", "owlore", "base2")
TASKS = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande")
NUM_ITEMS = 100
FLIPPED = 0.06
NOISE = 0.01
COMPARISONS = 2000
FEW_COMPARISONS = 150
"""Of 54 tested cells each."""
LEVEL = 0.05
ERROR = math.sqrt(LEVEL * (1 - LEVEL) / COMPARISONS)
"""Monte-Carlo standard error of a rate at the level."""


def templates(environment: Any) -> dict[str, list[Record]]:
    return {
        label: [make.make_record(label, seed=seed, minute=seed, environment=environment) for seed in range(5)]
        for label in LABELS
    }


OLD, LATER = templates(make.CPU), templates(NEW)


def side(draw: np.random.Generator, records: dict[str, list[Record]], slower: dict[str, float], flips: Any) -> Side:
    """Return one side with fresh noise; the first seed of each label has scores and items."""
    found = Side("side")
    made = []
    for label, group in records.items():
        seconds = slower.get(label, 1.0) * np.exp(NOISE * draw.normal(size=5))
        memory = 1e9 * np.exp(NOISE * draw.normal(size=5))
        for seed, record in enumerate(group):
            train = record.train.model_copy(update={"step_seconds_mean": float(seconds[seed])})
            phases = tuple(
                phase.model_copy(update={"host_peak_bytes": int(memory[seed])}) if phase.name == "train" else phase
                for phase in record.phases
            )
            changes: dict[str, Any] = {"train": train, "phases": phases, "scores": ()}
            if seed == 0:
                outcomes = {task: flips(label, task) for task in TASKS}
                changes["scores"] = tuple(score(task, values) for task, values in outcomes.items())
                changes["items"] = label
                found._items[label] = {
                    (task, "acc"): {(task, i, ""): float(v) for i, v in enumerate(values)}
                    for task, values in outcomes.items()
                }
            made.append(record.model_copy(update=changes))
    found.records = tuple(made)
    return found


def score(task: str, values: np.ndarray) -> Score:
    return Score(
        task=task,
        metric="acc",
        value=float(values.mean()),
        stderr=0.05,
        n=NUM_ITEMS,
        higher_is_better=True,
        task_version="1",
        num_fewshot=0,
        headline=True,
    )


def simulate(draw: np.random.Generator, tolerances: str, slower: dict[str, float] | None = None) -> Comparison:
    before = {(label, task): draw.random(NUM_ITEMS) < 0.6 for label in LABELS for task in TASKS}

    def same(label: str, task: str) -> np.ndarray:
        return before[label, task]

    def changed(label: str, task: str) -> np.ndarray:
        # An outcome is drawn anew, from the same chances: no true difference.
        anew = draw.random(NUM_ITEMS) < FLIPPED / 0.48
        return np.where(anew, draw.random(NUM_ITEMS) < 0.6, before[label, task])

    old, new = side(draw, OLD, {}, same), side(draw, LATER, slower or {}, changed)
    found = compare_sides(old, new, tolerances, LEVEL)
    assert len(found.cells) == 48
    return found


@pytest.mark.parametrize(
    "tolerances",
    ["step_time:2%,host_memory:3%,score:1pt", "step_time:0%,host_memory:0%,score:0pt"],
    ids=["usual", "no tolerance"],
)
def test_without_a_true_difference_false_alarms_keep_to_the_level(tolerances: str) -> None:
    draw = np.random.default_rng(1)
    alarms = sum(simulate(draw, tolerances).fails for _ in range(COMPARISONS))
    print(f"false alarms: {alarms} of {COMPARISONS} comparisons")
    assert alarms / COMPARISONS <= LEVEL + 3 * ERROR


def test_a_slowdown_of_exactly_the_tolerance_everywhere_is_no_alarm() -> None:
    draw = np.random.default_rng(2)
    slower = dict.fromkeys(LABELS, 1.02)
    alarms = sum(simulate(draw, "step_time:2%,host_memory:3%,score:1pt", slower).fails for _ in range(COMPARISONS))
    print(f"alarms at the tolerance: {alarms} of {COMPARISONS} comparisons")
    assert alarms / COMPARISONS <= LEVEL + 3 * ERROR


def test_a_harness_that_became_slower_by_five_percent_is_caught() -> None:
    draw = np.random.default_rng(3)
    slower = dict.fromkeys(LABELS, 1.05)
    found = [simulate(draw, "step_time:2%,host_memory:3%,score:1pt", slower) for _ in range(COMPARISONS)]
    caught = sum(comparison.fails for comparison in found)
    cells = sum(cell.verdict == "worse" for comparison in found for cell in comparison.cells)
    print(f"caught {caught} of {COMPARISONS} slowdowns, {cells} of {COMPARISONS * len(LABELS)} slower cells")
    assert caught / COMPARISONS >= 0.95
    assert cells / COMPARISONS / len(LABELS) >= 0.94


def test_one_slower_label_among_48_cells_is_caught_almost_as_often_as_any_test_could() -> None:
    """A known variance would catch 96.5% with a third of the level for six step times; here it is estimated."""
    draw = np.random.default_rng(3)
    caught = wrong = 0
    for _ in range(COMPARISONS):
        found = simulate(draw, "step_time:2%,host_memory:3%,score:1pt", {"full": 1.05})
        worse = {(cell.key[2], cell.metric) for cell in found.cells if cell.verdict == "worse"}
        caught += ("full", "step_time") in worse
        wrong += bool(worse - {("full", "step_time")})
    print(f"one slower label: caught {caught} of {COMPARISONS}; others called worse in {wrong}")
    assert caught / COMPARISONS >= 0.92
    assert wrong / COMPARISONS <= LEVEL + 3 * ERROR


FEW_TASKS = tuple(f"task{i}" for i in range(8))


def few_items(
    draw: np.random.Generator, num_items: int, anew: float, with_items: bool, tolerance: str = "1pt"
) -> Comparison:
    """Return a comparison of six labels on eight tasks of few items, one seed, of which nothing changed.

    Args:
        draw: Of the answers.
        num_items: Of each task.
        anew: Chance of an answer to be drawn again on the candidate's side, from the same chances.
        with_items: Whether the sides know them.
        tolerance: Of the scores.
    """
    sides = Side("old"), Side("new")
    records: tuple[list[Record], list[Record]] = [], []
    for label in LABELS:
        before = draw.random((len(FEW_TASKS), num_items)) < 0.6
        redrawn = draw.random(before.shape) < 0.6
        after = np.where(draw.random(before.shape) < anew, redrawn, before)
        for place, (record, outcomes) in enumerate(zip((OLD[label][0], LATER[label][0]), (before, after), strict=True)):
            scores = tuple(
                score(task, values).model_copy(update={"n": num_items})
                for task, values in zip(FEW_TASKS, outcomes, strict=True)
            )
            records[place].append(record.model_copy(update={"scores": scores, "items": label}))
            if with_items:
                sides[place]._items[label] = {
                    (task, "acc"): {(task, i, ""): float(v) for i, v in enumerate(values)}
                    for task, values in zip(FEW_TASKS, outcomes, strict=True)
                }
    for side_, group in zip(sides, records, strict=True):
        side_.records = tuple(group)
    return compare_sides(sides[0], sides[1], f"score:{tolerance}", LEVEL)


@pytest.mark.parametrize("with_items", [True, False], ids=["paired", "items absent"])
@pytest.mark.parametrize("anew", [1.0, 0.3])
@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 8])
def test_a_gate_over_few_items_keeps_to_its_level(num_items: int, anew: float, with_items: bool) -> None:
    draw = np.random.default_rng(num_items)
    alarms = sum(few_items(draw, num_items, anew, with_items).fails for _ in range(FEW_COMPARISONS))
    print(f"{num_items} items, {anew:.0%} anew, items {with_items}: {alarms} of {FEW_COMPARISONS}")
    assert alarms / FEW_COMPARISONS <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / FEW_COMPARISONS)


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("num_items", [1, 2, 3, 8])
def test_labels_that_are_alike_are_seldom_told_apart_by_few_items(num_items: int, num_seeds: int) -> None:
    draw = np.random.default_rng(num_items)
    apart = 0
    for _ in range(COMPARISONS):
        first, second = (list((draw.random((8, num_seeds, num_items)) < 0.6).astype(float)) for _ in range(2))
        apart += compare_methods(first, second).p_value <= LEVEL
    print(f"{num_items} items, {num_seeds} seeds: told apart in {apart} of {COMPARISONS}")
    assert apart / COMPARISONS <= LEVEL + 3 * ERROR


SEEDS_ALIKE = (0.0, 0.02, 0.1, 0.3)
"""Chance of an answer to be another than the item's own, seed by seed; 0: all seeds agree."""


def score_coverage(n: int, num_seeds: int, p: float, flipped: float, times: int) -> float:
    """Return how often the interval of a score over seeds holds the expected accuracy."""
    draw = np.random.default_rng(1000 * n + num_seeds)
    truth, covered = p + flipped * (1 - 2 * p), 0
    for _ in range(times):
        items = draw.random(n) < p
        outcomes = np.where(draw.random((num_seeds, n)) < flipped, ~items, items).astype(float)
        found = mean_interval([outcomes])
        assert found is not None
        covered += found[0] - 1e-12 <= truth <= found[1] + 1e-12
    return covered / times


@pytest.mark.parametrize("flipped", SEEDS_ALIKE)
@pytest.mark.parametrize(("n", "num_seeds", "p"), [(30, 2, 0.3), (30, 3, 0.3), (100, 3, 0.5), (1000, 3, 0.75)])
def test_intervals_of_a_score_over_seeds_cover_the_truth(n: int, num_seeds: int, p: float, flipped: float) -> None:
    """Where all seeds of 30 items agree, the interval is Wilson's, which covers 0.3 in 92.98% by its grid."""
    times = 4000
    covered = score_coverage(n, num_seeds, p, flipped, times)
    print(f"{n} items, {num_seeds} seeds, p {p}, flipped {flipped}: {covered:.4f}")
    error = math.sqrt(LEVEL * (1 - LEVEL) / times)
    assert (0.9298 if n == 30 and not flipped else 0.93) - 2 * error <= covered <= 0.975 + 2 * error


def test_the_interval_of_six_items_covers_as_its_grid_allows() -> None:
    """Of the seven outcomes none and all six are outside: 1 - 2/64 = 0.96875."""
    covered = score_coverage(6, 1, 0.5, 0.0, 10_000)
    print(f"6 items, 1 seed, p 0.5: {covered:.4f}")
    assert covered == pytest.approx(1 - 2 / 64, abs=0.006)


@pytest.mark.parametrize("num_tasks", [2, 8])
def test_intervals_of_an_average_over_seeds_cover_the_truth(num_tasks: int) -> None:
    draw = np.random.default_rng(num_tasks)
    truths = np.linspace(0.25, 0.7, num_tasks)
    truth, covered = float((truths + 0.1 * (1 - 2 * truths)).mean()), 0
    for _ in range(COMPARISONS):
        tasks = []
        for p in truths:
            items = draw.random(40) < p
            tasks.append(np.where(draw.random((3, 40)) < 0.1, ~items, items).astype(float))
        found = mean_interval(tasks)
        assert found is not None
        covered += found[0] <= truth <= found[1]
    print(f"average of {num_tasks} tasks, 3 seeds: {covered / COMPARISONS:.4f}")
    assert 0.93 - ERROR <= covered / COMPARISONS <= 0.97 + ERROR


def holm_power(num_cells: int, comparisons: int, noise: Any = None) -> tuple[float, float]:
    """Return how often one cell that is 5% slower is caught, and how often another is called worse."""
    draw = np.random.default_rng(4)
    caught = wrong = 0
    for _ in range(comparisons):
        sigma = np.full(num_cells, NOISE) if noise is None else noise(draw, num_cells)
        shift = np.zeros(num_cells)
        shift[0] = math.log(1.05)
        old = np.exp(sigma[:, None] * draw.normal(size=(num_cells, 5)))
        new = np.exp(shift[:, None] + sigma[:, None] * draw.normal(size=(num_cells, 5)))
        changes = log_changes(list(zip(old.tolist(), new.tolist(), strict=True)))
        rejected = [p <= LEVEL for p in holm([change.p_beyond(math.log(1.02)) for change in changes])]
        caught += rejected[0]
        wrong += any(rejected[1:])
    return caught / comparisons, wrong / comparisons


def test_one_slower_label_among_48_cells_is_caught_where_memory_repeats() -> None:
    """Bytes that repeat need no test and take no share of the level: half of it is left for six step times."""
    draw = np.random.default_rng(5)
    caught = wrong = 0
    for _ in range(COMPARISONS):
        found = simulate(draw, "step_time:2%,optimizer_state:3%,score:1pt", {"full": 1.05})
        worse = {(cell.key[2], cell.metric) for cell in found.cells if cell.verdict == "worse"}
        caught += ("full", "step_time") in worse
        wrong += bool(worse - {("full", "step_time")})
    print(f"one slower label, memory repeats: caught {caught} of {COMPARISONS}; others called worse in {wrong}")
    assert caught / COMPARISONS >= 0.95
    assert wrong / COMPARISONS <= LEVEL + 3 * ERROR


@pytest.mark.parametrize("num_cells", [1, 6])
def test_one_slow_step_time_is_caught_where_step_times_alone_are_judged(num_cells: int) -> None:
    caught, wrong = holm_power(num_cells, COMPARISONS)
    print(f"one of {num_cells} step times: {caught:.4f}")
    assert caught >= 0.95
    assert wrong <= LEVEL + 3 * ERROR


def test_one_slow_step_time_among_48_is_caught_almost_as_often_as_any_test_could() -> None:
    """A known variance catches 93.5%: the normal's tail beyond its quantile at 0.05/48 less 0.0290/0.00632."""
    caught, wrong = holm_power(48, COMPARISONS)
    print(f"one of 48 step times: {caught:.4f}")
    assert caught >= 0.90
    assert wrong <= LEVEL + 3 * ERROR


def test_cells_of_very_different_noise_keep_to_the_level() -> None:
    _, wrong = holm_power(48, COMPARISONS, lambda draw, n: np.exp(draw.uniform(math.log(0.003), math.log(0.03), n)))
    print(f"noise of 0.3% to 3%: wrong in {wrong:.4f}")
    assert wrong <= LEVEL + 3 * ERROR


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_intervals_over_seeds_cover_the_truth(num_seeds: int) -> None:
    draw = np.random.default_rng(num_seeds)
    covered = 0
    for values in draw.normal(0.4, 0.02, size=(4000, num_seeds)):
        low, high = t_interval(values.tolist())
        covered += low <= 0.4 <= high
    print(f"{num_seeds} seeds: {covered / 4000:.4f}")
    assert 0.93 <= covered / 4000 <= 0.97


ONE_SEED = [(1, 1, 0.0), (1, 4, 0.0)]
"""Their interval is over items alone: what a seed does is not in it, and it says so."""
SEVERAL = [
    (num_seeds, num_tasks, swing)
    for num_seeds, num_tasks in ((3, 1), (3, 4), (5, 1), (5, 8), (12, 2))
    for swing in (0.0, 0.02, 0.05, 0.1)
]


@pytest.mark.parametrize("effect", [0.1, 0.0], ids=["items differ", "items alike"])
@pytest.mark.parametrize(("num_seeds", "num_tasks", "swing"), ONE_SEED + SEVERAL)
def test_intervals_of_paired_differences_cover_the_truth(
    num_seeds: int, num_tasks: int, swing: float, effect: float
) -> None:
    covered = coverage(num_seeds, num_tasks, swing, effect)
    print(f"{num_seeds} seeds, {num_tasks} tasks, swing {swing}, effect {effect}: {covered:.4f}")
    assert 0.93 - ERROR <= covered <= 0.97 + ERROR


@pytest.mark.parametrize(("swing", "least", "most"), [(0.0, 0.94, 0.985), (0.02, 0.94, 0.985), (0.1, 0.89, 0.93)])
def test_intervals_of_two_seeds_cover_less_where_these_swing(swing: float, least: float, most: float) -> None:
    """What two seeds say of the spread of seeds is too little for any interval of a useful width."""
    covered = coverage(2, 4, swing, 0.1)
    print(f"2 seeds, swing {swing}: {covered:.4f}")
    assert least <= covered <= most


def coverage(num_seeds: int, num_tasks: int, swing: float, effect: float) -> float:
    """Return how often the interval holds the difference of the expected accuracies.

    Args:
        num_seeds: Of either method.
        num_tasks: Of 120 items each.
        swing: Standard deviation, over the seeds, of the difference that a seed makes to all items.
        effect: By how much items differ in what they gain, beside 0.1 on average.
    """
    draw = np.random.default_rng(10 * num_seeds + num_tasks)
    covered = 0
    for _ in range(COMPARISONS):
        pairs = []
        swings = draw.normal(0.0, swing, size=num_seeds)
        for _ in range(num_tasks):
            hardness = draw.uniform(0.1, 0.7, size=120)
            first = draw.random((num_seeds, 120)) < hardness
            gain = 0.1 + effect * draw.choice([-1.0, 1.0], size=120)
            second = draw.random((num_seeds, 120)) < (hardness + gain + swings[:, None])
            pairs.append((first.astype(float), second.astype(float)))
        found = compare_methods([a for a, _ in pairs], [b for _, b in pairs])
        covered += found.interval[0] <= 0.1 <= found.interval[1]
    return covered / COMPARISONS


@pytest.mark.parametrize(
    ("spreads", "most"), [((1.0,) * 9, 0.05), ((1.0,) * 6 + (2.0,) * 3, 0.08), ((1.0,) * 8 + (4.0,), 0.12)]
)
def test_losses_that_are_alike_are_seldom_told_apart(spreads: tuple[float, ...], most: float) -> None:
    draw = np.random.default_rng(len(set(spreads)))
    apart = 0
    for _ in range(COMPARISONS):
        values = draw.normal(size=(9, 3)) * np.array(spreads)[:, None] + 3 * draw.normal(size=3)
        found = blocked_means(values)
        apart += any(found.apart(i, j) for i in range(9) for j in range(i))
    print(f"spreads {spreads}: some pair told apart in {apart} of {COMPARISONS}")
    assert apart / COMPARISONS <= most + 3 * ERROR
