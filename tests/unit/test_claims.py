"""Claims on runs: one holder at a time, free when the holder is gone, judged by no clock but the observer's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.runs.claims import FOLDER, LEASE_SECONDS, LOOK_SECONDS, Claims, Lease, kernel_identity

HOLDER = """
import sys, time
from pathlib import Path
from harness.runs.claims import LOOK_SECONDS, Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.take("run", "work"), flush=True)
    time.sleep(600)
"""


class Clock:
    """A monotonic clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("run", "a")
        assert not second.take("run", "b")
        assert not first.take("run", "c")
        assert second.take("another", "b")
        first.release("run")
        assert second.take("run", "b")
        first.release("run")  # no longer its own
        assert not first.take("run", "a")


def test_nothing_is_left_of_claims_but_the_lock(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take("run", "a")
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["lock"]


def test_a_claim_ends_at_once_with_a_killed_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with Claims(tmp_path) as claims:
        assert not claims.take("run", "b")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert claims.take("run", "b")
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_a_claim_from_another_machine_ends_when_its_heartbeat_stands_still(tmp_path: Path) -> None:
    clock = Clock()
    lease = tmp_path / FOLDER / "run.lease"
    with Claims(tmp_path, "elsewhere") as other, Claims(tmp_path, "here", clock) as claims:
        assert other.take("run", "a")
        assert not claims.take("run", "b")
        clock.now += LEASE_SECONDS - 1
        os.utime(lease, ns=(0, 0))  # a heartbeat, by a clock that was set back by decades
        assert not claims.take("run", "b")
        clock.now += LEASE_SECONDS - 1
        assert not claims.take("run", "b")
        clock.now += 1
        assert claims.take("run", "b")


def test_a_lease_that_was_cut_when_it_was_written_ends_too(tmp_path: Path) -> None:
    clock = Clock()
    with Claims(tmp_path, clock=clock) as claims:
        (tmp_path / FOLDER / "run.lease").write_bytes(b'{"owner"')
        assert not claims.take("run", "b")
        clock.now += LEASE_SECONDS
        assert claims.take("run", "b")


def test_only_the_work_of_processes_that_are_gone_is_abandoned(tmp_path: Path) -> None:
    for name in ("held", "left"):
        (tmp_path / "work" / name).mkdir(parents=True)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        first.take("run", "held")
        (tmp_path / FOLDER / "gone.lease").write_text(
            Lease(owner=f"{kernel_identity()}-gone", work="x").model_dump_json()
        )
        with second.abandoned(tmp_path / "work") as folders:
            assert [folder.name for folder in folders] == ["left"]
        assert [file.stem for file in (tmp_path / FOLDER).glob("*.lease")] == ["run"]


def test_a_results_folder_where_no_claim_can_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(HarnessError, match=r"claims .* cannot be written"), Claims(tmp_path):
        pass


def test_what_others_hold_is_listed_and_not_looked_at_again_at_once(tmp_path: Path) -> None:
    now = [0.0]
    with Claims(tmp_path) as others, Claims(tmp_path, clock=lambda: now[0]) as claims:
        assert claims.of_others() == frozenset()
        assert claims.take("mine", "work")
        assert others.take("theirs", "work")
        assert claims.of_others() == {"theirs"}
        assert not claims.was_held("theirs")
        assert not claims.take("theirs", "work")
        assert claims.was_held("theirs")
        now[0] += LOOK_SECONDS
        assert not claims.was_held("theirs")
        others.release("theirs")
        assert claims.of_others() == frozenset()
        assert claims.take("theirs", "work")
