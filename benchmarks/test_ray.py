"""What a run costs the parent on Ray beside the child: submit, place, fetch, unpack, append. Aim: 50 ms.

pytest benchmarks/test_ray.py
"""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.record import Record
from harness.runs import ray as ray_executor
from harness.runs.executor import Runs
from harness.runs.ray_worker import Order, pack
from harness.store import Store
from harness.task import RunTask

ray = pytest.importorskip("ray")
FACTORY = Path(__file__).parent.parent / "tests" / "unit" / "fixtures_report" / "factory.py"
make = SimpleNamespace(**runpy.run_path(str(FACTORY)))
NUM_RUNS = 50


def no_child(order_json: str, events: Any) -> bytes:
    """Return a record at once, where a child would be started."""
    order = Order.model_validate_json(order_json)
    record = order.task.record(order.environment, datetime.now(UTC), "ok", None)
    return pack(record, order.task.work_folder, send_files=False)


class Silent:
    def run_begins(self, task: RunTask) -> None:
        """Ignore it."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Ignore it."""

    def run_ended(self, record: Record) -> None:
        """Ignore it."""

    def waits(self, num_runs: int) -> None:
        """Ignore it."""


def task(folder: Path, number: int) -> RunTask:
    spec = make.make_record("full", seed=number).spec
    name = f"{number:032x}"
    return RunTask(
        spec=spec,
        uuid=name,
        model=load_models()["smollm2-135m"],
        model_folder=None,
        rows_folder=None,
        cache_folder=folder,
        work_folder=folder / ".work" / name,
        run_id=spec.run_id,
    )


def test_cost_of_a_run_beside_its_child(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "run_task", no_child)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store = Store(tmp_path)
    numbers = iter(range(10**6))
    with ray_executor.ray_cluster(None, 1) as cluster:

        def batch(count: int = NUM_RUNS) -> int:
            tasks = [task(tmp_path, next(numbers)) for _ in range(count)]
            return len(cluster.run(Runs(tasks, store), Silent()).records)

        batch(4)  # starts the workers
        done = benchmark.pedantic(batch, rounds=5, iterations=1)
    assert done == NUM_RUNS
    assert len(store.read().records) == 4 + 5 * NUM_RUNS
    benchmark.extra_info["milliseconds_a_run"] = 1000 * benchmark.stats.stats.median / NUM_RUNS
    print(f"\n{benchmark.extra_info['milliseconds_a_run']:.1f} ms a run")
