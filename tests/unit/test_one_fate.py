"""A run on several devices: a child for each, one record, no process left; the children are small programs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.record import Record, Status
from harness.record_training import OutOfMemoryAt, Phase
from harness.runs import child as child_module
from harness.runs import process
from harness.runs.child import DESERTED, TRAINED_FILE
from harness.runs.children import Stop
from harness.runs.executor import NO_LIMITS, Limits
from harness.runs.fate import RankEnd, cause
from harness.runs.process import Interrupted, launch
from harness.task import RunTask
from tests.records import ENVIRONMENT, TRAIN, make_spec

HEAD = f"""
import json, os, pathlib, signal, sys, time
task = json.loads(sys.stdin.readline())
rank, folder = int(os.environ["HARNESS_RANK"]), pathlib.Path(task["work_folder"])
beside = folder.parent
def meet(number):
    (beside / f"pid-{{rank}}").write_text(str(os.getpid()))
    while len(list(beside.glob("pid-*"))) < number:
        time.sleep(0.01)
def leave(status, reason=None, name=None):
    record = json.loads((beside / "any.json").read_text()) | {{"status": status, "reason": reason}}
    name = name or ("record.json" if rank == 0 else f"record-{{rank}}.json")
    part = folder / f"part-{{rank}}"
    part.write_text(json.dumps(record))
    part.rename(folder / name)
def tell(what):
    print(json.dumps({{"event": "progress", "what": what, "done": 1, "total": None}}), flush=True)
def gone(other):
    while pathlib.Path(f"/proc/{{(beside / f'pid-{{other}}').read_text()}}/stat").exists():
        if "Z" in pathlib.Path(f"/proc/{{(beside / f'pid-{{other}}').read_text()}}/stat").read_text().split()[2:3]:
            return
        time.sleep(0.01)
DESERTED, HANG = {DESERTED}, 60
meet(task["gpus_per_run"])
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


def make_task(folder: Path, num_ranks: int = 2) -> RunTask:
    spec = make_spec()
    task = RunTask(
        spec=spec,
        uuid="1",
        model=load_models()["smollm2-135m"],
        model_folder=None,
        rows_folder=None,
        cache_folder=folder,
        work_folder=folder / "work",
        run_id=spec.run_id,
        gpus_per_run=num_ranks,
    )
    record = task.record(ENVIRONMENT, datetime.now(UTC), "ok", None, phases=(Phase(name="load", seconds=1),))
    (folder / "any.json").write_text(record.model_dump_json())
    return task


class Run:
    """A run whose ranks are a small program."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.told: list[str] = []
        self.returncodes: list[int] = []
        self._monkeypatch = monkeypatch

    def __call__(
        self,
        program: str,
        limits: Limits = NO_LIMITS,
        *,
        stop: Stop | None = None,
        ranks: int = 2,
        on_start: Callable[[int], None] = lambda number: None,
    ) -> Record:
        """Run it and return the record; every process that it started is gone then."""
        popen, started = subprocess.Popen, []

        def start(command: list[str], **options: Any) -> Any:
            on_start(len(started))
            started.append(popen([sys.executable, "-c", HEAD + program], **options))
            return started[-1]

        self._monkeypatch.setattr(subprocess, "Popen", start)
        try:
            return launch(
                make_task(self.folder, ranks),
                ENVIRONMENT,
                lambda what, done, total: self.told.append(what),
                limits,
                stop=stop,
                variables=[{"WHICH": f"device {rank}"} for rank in range(ranks)],
            )
        finally:
            assert not [one.pid for one in started if psutil.pid_exists(one.pid)]
            self.returncodes = [one.returncode for one in started]

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something once every rank is there."""

        def wait() -> None:
            while len(list(self.folder.glob("pid-*"))) < 2:
                time.sleep(0.01)
            time.sleep(seconds)
            what()

        threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(process, "ONE_FATE_SECONDS", 0.5)
    return Run(tmp_path, monkeypatch)


BUSY = """
import resource
if rank == 1:
    kept = bytearray(200_000_000)
while time.process_time() < 0.3 + 0.1 * rank:
    pass
tell(f"rank {rank} on {os.environ['WHICH']}")
if rank == 0:
    leave("ok")
(beside / f"used-{rank}").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@linux
def test_the_record_is_rank_0s_and_says_what_all_ranks_used(run: Run) -> None:
    record = run(BUSY)
    assert (record.status, record.reason, [phase.name for phase in record.phases]) == ("ok", None, ["load"])
    assert run.told == ["rank 0 on device 0"]
    assert record.process is not None
    assert record.process.cpu_seconds >= 0.7
    used = [int((run.folder / f"used-{rank}").read_text()) * 1024 for rank in (0, 1)]  # what forked them counts too
    assert max(used) <= record.process.host_peak_bytes < max(used) + 5 * 2**20
    assert max(used) > 200_000_000


def test_one_rank_that_diverges_ends_one_that_hangs_in_a_collective(run: Run) -> None:
    record = run("leave('diverged', 'loss is nan in step 3') if rank == 1 else time.sleep(HANG)")
    assert (record.status, record.reason) == ("diverged", "rank 1 of 2: loss is nan in step 3")
    assert record.process is not None
    assert run.returncodes == [-signal.SIGKILL, 0]


def test_rank_0_alone_does_not_make_a_run_ok(run: Run) -> None:
    record = run("leave('ok') if rank == 0 else leave('failed', 'no space')")
    assert (record.status, record.reason) == ("failed", "rank 1 of 2: no space")
    assert [phase.name for phase in record.phases] == ["load"]


def test_ranks_that_end_alike_leave_rank_0s_words(run: Run) -> None:
    record = run("leave('diverged', f'seen by {rank}')\nif rank == 0: time.sleep(0.2)")
    assert (record.status, record.reason) == ("diverged", "seen by 0")


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("other", ["sys.exit(DESERTED)", "time.sleep(HANG)"], ids=["deserted", "hangs"])
def test_a_rank_that_is_killed_is_named_and_its_death_is_the_runs(run: Run, killed: int, other: str) -> None:
    record = run(f"if rank == {killed}:\n  os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.1)\n{other}")
    assert record.status == "failed"
    assert record.reason == (
        f"rank {killed} of 2: the run's process was ended by SIGKILL; the system may have run out of memory"
    )
    assert record.process is not None


@linux
def test_what_a_rank_says_goes_before_the_death_that_follows_from_it(run: Run) -> None:
    """A watchdog of collectives aborts a rank whose peer is gone."""
    record = run(
        "if rank == 1:\n  leave('out_of_memory', 'out of memory in phase train')\n"
        "else:\n  gone(1)\n  print('watchdog', file=sys.stderr)\n  os.abort()"
    )
    assert (record.status, record.reason) == ("out_of_memory", "rank 1 of 2: out of memory in phase train")


def test_the_error_output_is_that_of_the_rank_that_died(run: Run) -> None:
    record = run("print('words of', rank, file=sys.stderr, flush=True)\nsys.exit(7) if rank == 1 else time.sleep(HANG)")
    assert record.reason == "rank 1 of 2: the run's process ended with exit status 7 and left no record"
    assert record.log_tail == "words of 1\n"


def test_ranks_that_only_lost_each_other_say_so(run: Run) -> None:
    record = run("sys.exit(DESERTED)")
    assert record.status == "failed"
    assert str(record.reason).endswith(" of 2: the run's process lost the other ranks")


def test_what_a_deserted_rank_0_had_is_kept_and_its_words_are_not(run: Run) -> None:
    record = run("leave('failed', f'words of {rank}')\nif rank == 0:\n  gone(1)\n  sys.exit(DESERTED)")
    assert (record.status, record.reason) == ("failed", "rank 1 of 2: words of 1")
    assert [phase.name for phase in record.phases] == ["load"]


def test_a_rank_that_a_stop_makes_another_desert_is_interrupted_too(run: Run) -> None:
    stop = Stop()
    run.after(0.1, stop.ask)
    with pytest.raises(Interrupted) as raised:
        run(
            "try:\n  time.sleep(HANG)\nexcept KeyboardInterrupt:\n  if rank == 0:\n"
            "    leave('failed', 'connection closed by peer')\n    sys.exit(DESERTED)",
            stop=stop,
        )
    record = raised.value.record
    assert (record.status, record.reason) == ("interrupted", "interrupted")
    assert [phase.name for phase in record.phases] == ["load"]


def test_a_rank_whose_proof_fails_leaves_rank_0_the_time_to_end(run: Run) -> None:
    record = run("if rank == 0: time.sleep(1.5)\nleave('unproven', 'no block moved')")
    assert (record.status, record.reason) == ("unproven", "no block moved")


def test_what_was_trained_stays_where_another_rank_ends_the_evaluation(run: Run) -> None:
    program = f"""
if rank == 0:
    record = json.loads((beside / "any.json").read_text())
    record |= {{"status": "interrupted", "reason": "ended before it was scored", "weights": "weights"}}
    (folder / "{TRAINED_FILE}").write_text(json.dumps(record))
    time.sleep(HANG)
while not (folder / "{TRAINED_FILE}").exists():
    time.sleep(0.01)
time.sleep(0.1)
leave("failed", "no such task")
"""
    record = run(program)
    assert (record.status, record.weights) == ("failed", "weights")
    assert str(record.reason).startswith("rank 1 of 2: no such task; the trained weights are kept")


def test_a_rank_that_stays_when_rank_0_has_ended_is_ended_too(run: Run) -> None:
    record = run("leave('ok') if rank == 0 else time.sleep(HANG)")
    assert (record.status, record.reason) == ("ok", None)


def test_ranks_that_take_too_long_are_all_ended(run: Run) -> None:
    record = run("time.sleep(HANG)", Limits(timeout_seconds=0.6))
    assert (record.status, record.reason) == ("timed_out", "timed out after 0.6 s")


POLITE = "try:\n  time.sleep(HANG)\nexcept KeyboardInterrupt:\n  leave('interrupted', f'interrupted, rank {rank}')"


def test_a_stop_reaches_every_rank_and_the_record_is_rank_0s(run: Run) -> None:
    stop = Stop()
    run.after(0.1, stop.ask)
    with pytest.raises(Interrupted) as raised:
        run(POLITE, stop=stop)
    assert raised.value.by_user
    assert raised.value.record.reason == "interrupted, rank 0"
    assert (run.folder / "work" / "record-1.json").exists()


def test_the_end_of_the_time_interrupts_every_rank(run: Run) -> None:
    with pytest.raises(Interrupted) as raised:
        run(POLITE, Limits(stop_at=time.monotonic() + 2))
    assert not raised.value.by_user
    assert str(raised.value.record.reason) == "interrupted, rank 0: the budget of seconds had ended"


def test_a_second_stop_waits_for_no_rank(run: Run) -> None:
    """Its wait would be longer than the time that a test has."""
    stop = Stop()
    run.after(0.1, lambda: (stop.ask(), time.sleep(0.4), stop.ask()))  # type: ignore[arg-type, return-value]
    with pytest.raises(Interrupted) as raised:
        run("if rank == 1:\n  signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(HANG)", stop=stop)
    assert raised.value.record.reason == "interrupted"


def test_where_one_rank_cannot_be_started_the_others_are_ended(run: Run) -> None:
    def full(number: int) -> None:
        if number == 1:
            raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(HarnessError, match="the run's process cannot be started"):
        run("time.sleep(HANG)", on_start=full)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [3, 4])
def test_the_first_cause_is_found_among_more_ranks(run: Run, ranks: int) -> None:
    last = ranks - 1
    record = run(
        f"if rank == {last}:\n  leave('failed', 'no space')\nelif rank == 1:\n  time.sleep(HANG)\n"
        "else:\n  time.sleep(0.2)\n  sys.exit(DESERTED)",
        ranks=ranks,
    )
    assert (record.status, record.reason) == ("failed", f"rank {last} of {ranks}: no space")


ORPHANS = "import sys, time; from harness.runs.children import Children; c = Children([{}, {}]); print(1, flush=True); "
ORPHANS += "time.sleep(60)"


def test_every_rank_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "1\n"
        ranks = psutil.Process(parent.pid).children()
        assert len(ranks) == 2
        parent.kill()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def end(rank: int, status: Status | None = None, returncode: int = 0) -> RankEnd:
    record = None if status is None else SimpleNamespace(status=status, is_ok=status == "ok")
    return RankEnd(rank, returncode, record, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ([end(1), end(0, "ok")], None),
        ([end(0, returncode=DESERTED), end(1, "diverged")], 1),
        ([end(0, returncode=-6), end(1, "failed")], 1),
        ([end(1, returncode=-9), end(0, "failed")], 1),
        ([end(0, "failed"), end(1, returncode=-9)], 0),
        ([end(2, "failed"), end(1, "out_of_memory"), end(0, returncode=DESERTED)], 1),
        ([end(1, "failed"), end(2, "failed")], 1),
        ([end(2, returncode=7), end(1, returncode=DESERTED)], 2),
        ([end(1, returncode=DESERTED), end(0)], 0),
        ([end(1, "interrupted"), end(0, returncode=-9)], 0),
        ([end(1, "unproven"), end(0, "ok")], 1),
    ],
)
def test_the_first_cause(ends: list[RankEnd], first: int | None) -> None:
    found = cause(ends)
    assert (None if found is None else found.rank) == first


class Deserted(Exception):
    """Stands for the engine's."""

    def __init__(self, record: Record | None) -> None:
        self.record = record


def as_rank(
    rank: int, record: Callable[[RunTask], Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunTask, list[Any], int]:
    """Execute a task as one rank of two, in this process; return it, what the engine was asked, and the exit status."""
    asked: list[Any] = []

    @contextmanager
    def joined(size: int, which: int, folder: Path) -> Any:
        asked.append((size, which, folder))
        yield "ranks"

    def execute(
        task: RunTask, progress: Any, leave: Callable[[Record], None], ranks: Any = None, tell: Any = None
    ) -> Record:
        asked.append(ranks)
        leave(make_record(task, "interrupted"))
        return record(task)

    engine = ModuleType("harness.engine.ranks")
    engine.Deserted, engine.joined = Deserted, joined  # type: ignore[attr-defined]
    runner = ModuleType("harness.engine.runner")
    runner.execute = execute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harness.engine.ranks", engine)
    monkeypatch.setitem(sys.modules, "harness.engine.runner", runner)
    monkeypatch.setenv("HARNESS_RANK", str(rank))
    task = make_task(tmp_path)
    task.work_folder.mkdir()
    return task, asked, child_module._execute(task, lambda *_: None, lambda _: None)


def make_record(task: RunTask, status: Status) -> Record:
    reason = None if status == "ok" else "why"
    return task.record(ENVIRONMENT, datetime.now(UTC), status, reason, out_of_memory_at=OutOfMemoryAt(phase="load"))


@pytest.mark.parametrize(
    ("rank", "status", "files"),
    [
        (0, "ok", {"record.json", TRAINED_FILE}),
        (0, "failed", {"record.json", TRAINED_FILE}),
        (1, "ok", set()),
        (1, "failed", {"record-1.json"}),
        (1, "interrupted", {"record-1.json"}),
    ],
)
def test_rank_0_alone_writes_and_another_where_it_ends_badly(
    rank: int, status: Status, files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, asked, exit_status = as_rank(rank, lambda task: make_record(task, status), tmp_path, monkeypatch)
    assert {file.name for file in task.work_folder.iterdir()} == files
    assert (asked, exit_status) == ([(2, rank, task.work_folder), "ranks"], 0)


@pytest.mark.parametrize(("rank", "files"), [(0, {"record.json", TRAINED_FILE}), (1, set())])
def test_of_ranks_that_were_deserted_rank_0_leaves_what_it_had(
    rank: int, files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deserted(task: RunTask) -> Record:
        raise Deserted(make_record(task, "failed") if rank == 0 else None)

    task, _, exit_status = as_rank(rank, deserted, tmp_path, monkeypatch)
    assert exit_status == DESERTED
    assert {file.name for file in task.work_folder.iterdir()} == files


@pytest.mark.parametrize(
    ("steps", "ranks", "said"),
    [
        (6, 4, "4 ranks cannot share out the 6 micro-batches of a step evenly"),
        (1, 2, "2 ranks cannot share out the 1 micro-batch of a step evenly"),
        (6, 3, None),
        (1, 1, None),
    ],
)
def test_micro_batches_that_cannot_be_shared_out_are_refused(steps: int, ranks: int, said: str | None) -> None:
    settings: Mapping[str, Any] = {"gradient_accumulation_steps": steps}
    spec = make_spec(train=TRAIN.model_copy(update=settings))
    what_to_do = f"set gradient_accumulation_steps to a multiple of {ranks}"
    assert spec.train.cannot_share_out(ranks) == (None if said is None else f"{said}: {what_to_do}")
