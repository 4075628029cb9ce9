"""Steps in a history: found where they are, none where there is none, and told by commits."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ruptures

from harness.cli import main
from harness.record import Record
from harness.report.comparing.history import history, history_rows, turn_sentence, turns
from harness.report.statistics.steps import MOST_POINTS, adjusted_means, steps
from harness.store import Store

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
NOISE = np.random.default_rng(7).normal(0.0, 0.01, 40)


def places(values: object) -> list[int]:
    return [step.at for step in steps(values)]  # type: ignore[arg-type]


def test_one_step_a_bump_and_none_are_told_apart() -> None:
    step, bump = np.where(np.arange(40) >= 25, 0.05, 0.0), np.where((np.arange(40) > 9) & (np.arange(40) < 16), 0.06, 0)
    assert places(NOISE) == []
    assert places(NOISE + step) == [25]
    assert places(NOISE + bump) == [10, 16]
    assert places(NOISE + step + bump) == [10, 16, 25]


def test_the_newest_commit_alone_can_be_a_step() -> None:
    values = NOISE[:20].copy()
    values[-1] += 0.08
    (found,) = steps(values)
    assert (found.at, found.earliest, found.latest) == (19, 19, 19)
    assert found.p_value is not None and found.p_value < 0.001


@pytest.mark.parametrize("count", [2, 3])
def test_the_best_places_are_those_of_an_independent_search(count: int) -> None:
    """ruptures searches all partitions; ours splits and settles."""
    generator = np.random.default_rng(count)
    for _ in range(20):
        edges = sorted(generator.choice(np.arange(1, 8), count, replace=False) * 8)
        levels = np.cumsum(generator.choice([-1.0, 1.0], count + 1))
        values = np.repeat(levels, np.diff([0, *edges, 64])) + generator.normal(0, 0.15, 64)
        best = ruptures.Dynp(model="l2", min_size=1, jump=1).fit(values).predict(n_bkps=count)
        assert places(values) == best[:-1] == edges


def test_values_that_repeat_exactly_need_no_noise() -> None:
    (found,) = steps([5.0, 5.0, 6.0])
    assert (found.at, found.change, found.interval, found.p_value) == (2, 1.0, None, None)
    assert places([5.0, 5.0, 5.0, 6.0, 6.0, 4.0, 4.0]) == [3, 5]
    assert places([5.0, 6.0]) == places([5.0]) == places([]) == []


def test_a_change_has_the_interval_of_the_two_levels() -> None:
    """Against scipy's own pooled t interval of the two parts."""
    from scipy.stats import ttest_ind

    values = NOISE[:20] + np.where(np.arange(20) >= 12, 0.1, 0.0)
    (found,) = steps(values)
    expected = ttest_ind(values[12:], values[:12]).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_of_a_long_series_the_newest_count() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=MOST_POINTS + 50)
    values[:20] += 50.0
    values[-30:] += 9.0
    assert places(values) == [MOST_POINTS + 20]


def test_seeds_that_not_every_commit_has_are_no_step() -> None:
    effects = {1: 0.0, 2: 5.0, 3: -5.0}
    seeds = [(1, 2), (2, 3), (1, 3), (2,), (3, 1), (1,)]
    points = [[(seed, 10.0 + i + effects[seed]) for seed in chosen] for i, chosen in enumerate(seeds)]
    assert np.diff(adjusted_means(points)) == pytest.approx(1.0)
    same = [[(1, 1.0), (2, 3.0)], [(2, 5.0), (1, 3.0)]]
    assert adjusted_means(same) == [2.0, 4.0]
    apart = [[(1, 1.0)], [(2, 7.0)]]
    assert adjusted_means(apart) == [1.0, 7.0]


def _records(seconds: list[float]) -> list[Record]:
    found = []
    for minute, value in enumerate(seconds):
        commit = f"{minute:x}" * 40
        environment = make.CPU.model_copy(update={"commit": commit, "source_checksum": f"{minute:x}" * 64})
        record = make.make_record("full", minute=minute, environment=environment)
        found.append(record.model_copy(update={"train": record.train.model_copy(update={"step_seconds_mean": value})}))
    return found


SLOWER = [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0, 1.3, 1.31, 1.29, 1.3, 1.3]


def test_a_step_is_told_by_its_commits() -> None:
    series = history(_records(SLOWER), "step_time")
    (turn,) = turns(series, "step_time")
    assert (turn.commit, turn.after, turn.until) == ("7" * 12, "6" * 12, "7" * 12)
    assert turn.interval is not None and turn.interval[0] < turn.change < turn.interval[1]
    assert turn.change == pytest.approx(0.3, abs=0.005)
    said = turn_sentence(turn, "step_time")
    assert said.startswith("step of tiny full at 777777777777: +30.0") and said.endswith("; behind 666666666666")
    rows = history_rows(series, "step_time", [turn])
    assert [row["commit"] for row in rows if row["step"]] == ["7" * 12]


def test_the_command_names_the_commit_and_json_holds_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for record in _records(SLOWER):
        Store(tmp_path / "results" / "records").append(record)
    asked = ["history", "--suite", "quick", "--metric", "step_time"]
    assert main([*asked, "--plot", "h.png"]) == 0
    assert "step of tiny full at 777777777777: +30.0" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    (step,) = (point["step"] for point in json.loads(capsys.readouterr().out) if point["step"])
    assert step["after"] == "6" * 12 and step["p_value"] < 0.001
    assert main(["history", "--suite", "quick", "--metric", "optimizer_state"]) == 0
    assert "No step was found" in capsys.readouterr().out
