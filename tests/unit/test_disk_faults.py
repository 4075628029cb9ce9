"""A disk that is full or may not be written: one sentence, nothing recorded is lost, and the next call goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.record import Record
from harness.runs.child import RECORD_FILE
from harness.runs.settling import WORK, recover, settle, work_folder
from harness.store import Store
from tests.records import make_record

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def finished(store: Store) -> tuple[Path, Record]:
    """Return the work folder of a run that left its record, items and weights there, and the record."""
    record = make_record(uuid=uuid.uuid4().hex, minute=1, items="items.jsonl.zst", weights="weights")
    work = work_folder(store, record.run_id, record.uuid)
    (work / "weights").mkdir(parents=True)
    (work / "weights" / "model.safetensors").write_bytes(b"weights")
    (work / "items.jsonl.zst").write_bytes(b"items")
    (work / RECORD_FILE).write_text(record.model_dump_json())
    return work, record


def raising(error: OSError) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [FULL, READ_ONLY])
@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "pathlib.Path.open", "filelock.FileLock.acquire"])
def test_a_run_that_cannot_be_stored_is_stored_by_the_next_call(
    where: str, error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.append(make_record(uuid="before"))
    before = store.file_of("tiny").read_bytes()
    work, record = finished(store)
    with monkeypatch.context() as patch:
        patch.setattr(where, raising(error))
        with pytest.raises(HarnessError, match=str(error.strerror)):
            settle(work, record, store, None)
    assert store.file_of("tiny").read_bytes() == before
    assert recover(store) == 1
    stored = store.read("tiny").records[-1]
    assert stored.uuid == record.uuid
    assert (tmp_path / str(stored.items)).read_bytes() == b"items"
    assert (tmp_path / str(stored.weights) / "model.safetensors").read_bytes() == b"weights"
    assert list((tmp_path / WORK).iterdir()) == []


def test_what_is_stored_already_is_not_stored_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work, record = finished(store)
    store.append(record)
    assert recover(store) == 0
    assert not work.exists()
    assert len(store.read("tiny").records) == 1


@pytest.mark.parametrize("data", [b"", b"{cut", b"\xff\x00"])
def test_work_without_a_whole_record_is_swept(data: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    work, _ = finished(store)
    (work / RECORD_FILE).write_bytes(data)
    assert recover(store) == 0
    assert not work.exists()


def test_claims_on_a_full_disk_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filelock.FileLock.acquire", raising(FULL))
    with pytest.raises(HarnessError, match=r"claims .* cannot be written: No space left"):
        recover(Store(tmp_path))


def test_a_line_that_the_disk_takes_only_in_part_is_taken_back(tmp_path: Path) -> None:
    """A real limit on the size of a file: the system writes what fits and refuses the rest."""
    store = Store(tmp_path)
    store.append(make_record(uuid="before"))
    file = store.file_of("tiny")
    before = file.read_bytes()
    script = """
import resource, signal, sys
from pathlib import Path
from harness.errors import HarnessError
from harness.store import Store
from tests.records import make_record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2]) + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    Store(Path(sys.argv[1])).append(make_record(uuid="after"))
except HarnessError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(len(before))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((*sys.path, str(Path(__file__).parents[2])))},
    )
    assert f"{file}: the record could not be written" in done.stdout
    assert file.read_bytes() == before
    store.append(make_record(uuid="after"))
    assert [record.uuid for record in store.read("tiny").records] == ["after", "before"]
