"""The parent's side of a calibration, with a worker of the test's: results as they come, deaths, a budget's end."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.calibration import conductor
from harness.calibration.conductor import Order, conduct
from harness.calibration.parts import Part, all_parts
from harness.calibration_log import GROUPS, PartResult
from tests.records import ENVIRONMENT

WORKER = f"""
import json, os, signal, sys, time
order = json.loads(sys.stdin.readline())
for name in order["parts"]:
    rank = int(os.environ.get("HARNESS_RANK", 0))
    if rank == 0:
        print(json.dumps({{"begins": name}}), flush=True)
    if "deserted" in name and rank == 0:
        os._exit(18)
    if "shared" in name and rank == 0 and ("waits" in name):
        time.sleep(600)
    if "deserted" in name:
        time.sleep(0.5)
    if "exits" in name:
        print("what it said last", file=sys.stderr, flush=True)
        os._exit(3)
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "sleeps" in name:
        time.sleep(600)
    bad = rank == 1 and "fails" in name
    if rank and not bad:
        continue
    result = dict(part=name, group="checks", sizes=order["sizes"], outcome="failed" if bad else "ok", seconds=0.1,
                  sentence=str(os.getpid()), started_at="2026-01-01T00:00:00Z", environment_id="e",
                  environment={ENVIRONMENT.model_dump(mode="json")!r})
    print(json.dumps({{"result": result}}), flush=True)
"""


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "worker_of_the_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(conductor, "MODULE", "worker_of_the_test")

    def call(
        *names: str, seconds: float = 60.0, part_seconds: float = 60.0
    ) -> tuple[list[PartResult], list[str], list[str]]:
        parts = [Part(name, "checks", "none.none", alone="alone" in name, shared="shared" in name) for name in names]
        two = ({"OF_RANK": "0"}, {"OF_RANK": "1"})
        order = Order("smoke", ENVIRONMENT, time.monotonic() + seconds, part_seconds, two)
        kept: list[PartResult] = []
        begun: list[str] = []
        left = conduct(parts, order, lambda part: begun.append(part.name), kept.append)
        return kept, begun, [part.name for part in left]

    return call


def test_parts_share_a_process_but_those_that_ask_for_their_own(ask: Any) -> None:
    kept, begun, left = ask("a", "b", "alone 1", "alone 2", "c")
    assert [result.part for result in kept] == begun == ["a", "b", "alone 1", "alone 2", "c"]
    assert left == []
    processes = [result.sentence for result in kept]
    assert processes[0] == processes[1]
    assert len(set(processes)) == 4


def test_a_process_that_dies_fails_its_part_and_the_rest_goes_on(ask: Any) -> None:
    kept, _, left = ask("a", "exits", "b", "killed", "c")
    assert [(result.part, result.outcome) for result in kept] == [
        ("a", "ok"),
        ("exits", "failed"),
        ("b", "ok"),
        ("killed", "failed"),
        ("c", "ok"),
    ]
    assert kept[1].sentence == "its process ended with exit status 3: what it said last"
    assert kept[3].sentence == "its process ended by SIGKILL"
    assert left == []


def test_the_end_of_the_budget_cuts_the_part_under_way_and_keeps_what_came(ask: Any) -> None:
    kept, begun, left = ask("a", "sleeps", "b", seconds=1.5)
    assert [result.part for result in kept] == ["a"]
    assert begun == ["a", "sleeps"]
    assert left == ["sleeps", "b"]


def test_a_part_that_hangs_has_failed_and_the_rest_goes_on(ask: Any) -> None:
    kept, _, left = ask("a", "sleeps", "b", part_seconds=1.5)
    assert [(result.part, result.outcome) for result in kept] == [("a", "ok"), ("sleeps", "failed"), ("b", "ok")]
    assert kept[1].sentence == "took over 1.5 s"
    assert left == []


def test_parts_that_devices_share_have_a_process_for_each_and_one_answer(ask: Any) -> None:
    kept, begun, left = ask("a", "shared 1", "shared 2", "b")
    assert [result.part for result in kept] == begun == ["a", "shared 1", "shared 2", "b"]
    assert left == []
    processes = [result.sentence for result in kept]
    assert processes[1] == processes[2] and len(set(processes)) == 3
    assert [result.environment_id for result in kept] == ["e", *2 * [ENVIRONMENT.environment_id], "e"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shared, waits, rank 1 killed", "rank 1 of 2: its process ended by SIGKILL"),
        ("shared, waits, rank 1 exits", "rank 1 of 2: its process ended with exit status 3: what it said last"),
        ("shared, deserted, rank 1 killed", "rank 1 of 2: its process ended by SIGKILL"),
    ],
)
def test_a_process_that_others_wait_for_ends_them_and_is_named(name: str, sentence: str, ask: Any) -> None:
    before = psutil.Process().children()
    kept, _, left = ask("shared 1", name, "shared 2")
    assert [result.outcome for result in kept] == ["ok", "failed", "ok"]
    assert kept[1].sentence == sentence
    assert left == []
    assert psutil.Process().children() == before


def test_a_failure_of_another_process_than_the_first_is_the_parts(ask: Any) -> None:
    before = psutil.Process().children()
    kept, _, _ = ask("shared, waits, fails", "shared 2")
    assert [(result.part, result.outcome) for result in kept] == [
        ("shared, waits, fails", "failed"),
        ("shared 2", "ok"),
    ]
    assert psutil.Process().children() == before


def test_a_budget_that_is_over_asks_nothing(ask: Any) -> None:
    assert ask("a", "b", seconds=0.0) == ([], [], ["a", "b"])


def test_parts_have_names_of_their_own_and_come_in_the_order_of_their_groups() -> None:
    parts = all_parts(2)
    assert [part for part in parts if not part.shared] == list(all_parts())
    assert {part.group for part in parts if part.shared} == {"sharded"}
    assert len({part.name for part in parts}) == len(parts)
    order = [GROUPS.index(part.group) for part in parts]
    assert order == sorted(order)
    assert all(callable(part.function()) for part in parts)


def test_every_registered_method_that_trains_takes_steps() -> None:
    from harness.catalogue.labels import load_labels
    from harness.method import METHODS

    labels = {part.argument for part in all_parts() if part.where == "methods.steps_of"}
    shown = {entry.method for label, entry in load_labels().items() if label in labels}
    assert shown == {name for name in METHODS.names() if METHODS.get(name).trains}


def test_the_parents_side_imports_no_torch() -> None:
    folder = Path(conductor.__file__).parent
    for name in ("conductor", "parts"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {one.split(".")[0] for one in names} & {"torch", "transformers"}, name
