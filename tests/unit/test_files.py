"""Files that are read with one sentence, and that appear whole and durably or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import files
from harness.catalogue.models import BaseModelSpec
from harness.engine.keeping import keep_trained
from harness.errors import HarnessError
from harness.method import Method
from harness.record import Record
from harness.run_names import folder_name
from harness.runs.child import RECORD_FILE
from harness.runs.settling import WORK, recover, settle, work_folder
from harness.store import Store
from tests.records import make_record


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def watch(root: Path, patch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: None) -> list[str]:
    """Return a list that grows by ``sync PLACE`` and ``move PLACE`` as the system is asked for them."""
    seen: list[str] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def place(of: os.stat_result) -> str:
        return next(str(p.relative_to(root)) for p in (root, *root.rglob("*")) if os.path.samestat(p.lstat(), of))

    def watched_fsync(handle: int) -> None:
        before()
        seen.append(f"sync {place(os.fstat(handle))}")
        fsync(handle)

    def watched_replace(source: Any, target: Any) -> None:
        before()
        seen.append(f"move {Path(target).relative_to(root)}")
        replace(source, target)

    def watched_rmtree(*arguments: Any, **options: Any) -> None:
        before()
        rmtree(*arguments, **options)

    patch.setattr(os, "fsync", watched_fsync)
    patch.setattr(os, "replace", watched_replace)
    patch.setattr(shutil, "rmtree", watched_rmtree)
    return seen


def finished(store: Store) -> tuple[Path, Record]:
    """Return the work folder of a run that left its record and files there, and the record."""
    record = make_record(uuid=uuid.uuid4().hex, minute=1, items="items.jsonl.zst", weights="weights")
    work = work_folder(store, record.run_id, record.uuid)
    (work / "weights").mkdir(parents=True)
    (work / "weights" / "model.safetensors").write_bytes(b"weights")
    (work / "items.jsonl.zst").write_bytes(b"items")
    (work / RECORD_FILE).write_text(record.model_dump_json())
    return work, record


def test_what_a_record_names_is_durable_before_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    work, record = finished(store)
    name, stem, left = folder_name(record), f"{record.run_id}-{record.uuid}", work.relative_to(tmp_path)
    with monkeypatch.context() as patch:
        seen = watch(tmp_path, patch)
        settle(work, record, store, None)
    assert seen.count("sync tiny.jsonl") == 1
    before = seen[: seen.index("sync tiny.jsonl")]
    for order in (
        [f"sync {left}/items.jsonl.zst", f"move items/{stem}.jsonl.zst", "sync items"],
        [f"sync {left}/weights/model.safetensors", f"sync {left}/weights", f"move weights/{name}", "sync weights"],
    ):
        since = before[before.index(order[0]) :]  # what describes the weights was flushed in their folder before
        assert [event for event in since if event in order] == order
    # The folders themselves are new, and so is the file of the records.
    assert before.index("sync .") < before.index(f"move items/{stem}.jsonl.zst")
    assert "sync ." in seen[seen.index("sync tiny.jsonl") :]


def test_a_parent_killed_between_any_two_steps_of_storing_a_run_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        store = Store(tmp_path / str(number))
        work, record = finished(store)
        steps = iter(range(number))

        def kill(steps: Any = steps) -> None:
            if next(steps, None) is None:
                raise Killed

        ended = False
        with monkeypatch.context() as patch:
            watch(store.folder, patch, kill)
            try:
                settle(work, record, store, None)
                ended = True
            except Killed:
                pass
        there = len(store.read("tiny").records)
        assert recover(store) == 1 - there
        (stored,) = store.read("tiny").records
        assert stored.uuid == record.uuid
        assert (store.folder / str(stored.items)).read_bytes() == b"items"
        assert (store.folder / str(stored.weights) / "model.safetensors").read_bytes() == b"weights"
        assert list((store.folder / WORK).iterdir()) == []
        if ended:
            assert number > 10
            return
    raise AssertionError("storing a run never ended")


def test_files_that_a_killed_parent_had_moved_are_made_durable_before_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    work, record = finished(store)
    moved = tmp_path / "items" / f"{record.run_id}-{record.uuid}.jsonl.zst"
    moved.parent.mkdir()
    (work / "items.jsonl.zst").rename(moved)
    with monkeypatch.context() as patch:
        seen = watch(tmp_path, patch)
        assert recover(store) == 1
    before = seen[: seen.index("sync tiny.jsonl")]
    assert before.index(f"sync items/{moved.name}") < before.index("sync items")


def test_saved_weights_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Saves:
        def save_pretrained(self, folder: Path, **_: Any) -> None:
            (folder / f"{len(list(folder.iterdir()))}.json").write_text("saved")

    class Whole:
        export = Method.export

        def adapter(self, model: Any) -> None:
            return None

    seen = watch(tmp_path, monkeypatch)
    method: Any = Whole()
    base = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=tmp_path)
    keep_trained(method, Saves(), Saves(), tmp_path / "weights", base)  # type: ignore[arg-type]
    assert seen[0] == "sync ."
    assert set(seen[1:-1]) == {"sync weights/0.json", "sync weights/1.json", "sync weights/base.json"}
    assert seen[-1] == "sync weights"


def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(tmp_path, monkeypatch)
    files.write_file(tmp_path / "file", "one\r\ntwo\n")
    assert (tmp_path / "file").read_bytes() == b"one\r\ntwo\n"
    assert [event.partition(".file")[0] for event in seen] == ["sync ", "move file", "sync ."]


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        sentence = r"^file: cannot be kept: No space left on device; make room$"
        with pytest.raises(HarnessError, match=sentence), files.said_as("file: cannot be kept", "make room"):
            files.write_file(tmp_path / "file", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for content in ("before", "after"):
        with files.replacing(tmp_path / "folder") as part:
            (part / "inner").mkdir(parents=True)
            (part / "inner" / content).write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder" / "inner").iterdir()] == ["after"]


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").touch()
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if (Path(source) / "after").exists():
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="Input/output error"), files.replacing(tmp_path / "folder") as part:
            part.mkdir()
            (part / "after").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "folder",
        "folder/before",
    ]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    with pytest.raises(IsADirectoryError):
        files.write_file(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]


def test_what_a_killed_process_left_beside_a_place_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with pytest.raises(Killed), files.replacing(tmp_path / name) as part:
            part.mkdir()
            (tmp_path / "kept" / part.name).mkdir(parents=True)
            raise Killed
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # a kill of the interpreter alone cleans up
    for left in (tmp_path / "kept").iterdir():
        left.rename(tmp_path / left.name)
    files.sweep_beside(tmp_path / "one")
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*")] == ["two"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "the list: cannot be read: No such file or directory"),
        (b"\xff", r"the list: is not UTF-8 text \(byte 0\)"),
        (b"{", "the list: is not JSON: Expecting property name"),
        (b"[" * 100_000, "the list: is not JSON: nested too deeply"),
        (b"9" * 5000, "the list: is not JSON: Exceeds the limit"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(data: bytes | None, sentence: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "file").write_bytes(data)
    with pytest.raises(HarnessError, match=f"^{sentence}"):
        files.read_json(tmp_path / "file", "the list")


def test_a_folder_is_no_file_to_read_and_an_absent_file_may_be_none(tmp_path: Path) -> None:
    assert files.read_bytes_if_there(tmp_path / "absent") is None
    for read in (files.read_bytes, files.read_bytes_if_there, files.read_text, files.read_json):
        with pytest.raises(HarnessError, match=f"^{tmp_path}: cannot be read: Is a directory$"):
            read(tmp_path)


def test_a_mark_at_the_start_of_a_text_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf[1]\r\n")
    assert files.read_text(tmp_path / "file") == "[1]\n"
    assert files.read_json(tmp_path / "file") == [1]


def test_a_file_system_that_flushes_no_folders_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    files.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(tmp_path / "file")
