"""Steps of a history by simulation: how often there is one where there is none, and how well one is told.

``python tests/long/test_steps_simulation.py`` prints the table of docs/regressions.md.
"""

from __future__ import annotations

import numpy as np
import pytest

from harness.report.statistics.steps import Step, steps

pytestmark = pytest.mark.long

SERIES = 2000
NUM_COMMITS = (4, 6, 10, 30, 100)


def found(num_commits: int, size: float, at: int) -> list[list[Step]]:
    """Return what is found in series of unit noise with one step."""
    generator = np.random.default_rng([num_commits, at, int(10 * size)])
    level = size * (np.arange(num_commits) >= at)
    return [steps(generator.standard_normal(num_commits) + level) for _ in range(SERIES)]


def share(series: list[list[Step]]) -> float:
    return float(np.mean([bool(one) for one in series]))


@pytest.mark.parametrize("num_commits", NUM_COMMITS)
def test_where_there_is_no_step_the_level_holds(num_commits: int) -> None:
    assert share(found(num_commits, 0.0, 0)) <= 0.05 + 2.6 * (0.05 * 0.95 / SERIES) ** 0.5


@pytest.mark.parametrize(("num_commits", "least"), [(10, 0.8), (30, 0.99), (100, 0.99)])
def test_a_step_of_four_is_found_in_the_middle(num_commits: int, least: float) -> None:
    assert share(found(num_commits, 4.0, num_commits // 2)) >= least


def told() -> tuple[float, float]:
    """Return how often place and change of a step of 2 in thirty commits are where they are said to be."""
    alone = [one[0] for one in found(30, 2.0, 12) if len(one) == 1]
    assert len(alone) > 0.8 * SERIES
    place = np.mean([step.earliest <= 12 <= step.latest for step in alone])
    change = np.mean([step.interval[0] <= 2.0 <= step.interval[1] for step in alone if step.interval is not None])
    return float(place), float(change)


def test_place_and_change_are_where_they_are_said_to_be() -> None:
    place, change = told()
    assert place >= 0.93
    assert 0.93 <= change <= 0.97


if __name__ == "__main__":
    for count in NUM_COMMITS:
        cells = (found(count, 0.0, 0), found(count, 4.0, count // 2), found(count, 8.0, count - 1))
        print(f"| {count} | " + " | ".join(f"{100 * share(cell):.1f}%" for cell in cells) + " |")
    print("place and change:", *(f"{100 * value:.1f}%" for value in told()))
