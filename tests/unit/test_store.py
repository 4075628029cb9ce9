"""Records on disk: appended under a lock, a cut line set aside, nothing lost."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.record import SCHEMA_VERSION, Record
from harness.record_versions import parse_record
from harness.store import Store, has_outcome
from tests.records import ENVIRONMENT, make_record

NONE: frozenset[str] = frozenset()


def test_what_was_appended_is_read_back_in_order_of_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    late, early = make_record(uuid="b", minute=2), make_record(uuid="a", minute=1)
    store.append(late)
    store.append(early)
    assert store.read("tiny").records == (early, late)
    assert store.read().records == (early, late)


def test_a_cut_line_is_passed_over_with_a_sentence_and_kept_by_the_next_append(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(make_record(uuid="a"))
    whole = store.file_of("tiny").read_bytes()
    cut = make_record(uuid="b").model_dump_json().encode()[:100]
    store.file_of("tiny").write_bytes(whole + cut)

    contents = store.read("tiny")
    assert [record.uuid for record in contents.records] == ["a"]
    assert len(contents.warnings) == 1
    assert "line 2: is cut off after 100 bytes" in contents.warnings[0]

    store.append(make_record(uuid="c"))
    contents = store.read("tiny")
    assert [record.uuid for record in contents.records] == ["a", "c"]
    assert contents.warnings == ()
    assert Path(f"{store.file_of('tiny')}.cut").read_bytes() == cut + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{not json}\n", "is not JSON"),
        (b"[1, 2]\n", "is not a record: schema_version is missing"),
        (b'{"schema_version": 999}\n', "newer than"),
        (b'{"schema_version": 0}\n', "which never existed"),
        (b'{"schema_version": 1, "nonsense": 1}\n', "is not a valid record"),
        (b"\xff\xfe\n", "is not JSON"),
    ],
)
def test_a_damaged_line_costs_only_itself(tmp_path: Path, line: bytes, said: str) -> None:
    store = Store(tmp_path)
    store.append(make_record(uuid="a"))
    with store.file_of("tiny").open("ab") as stream:
        stream.write(line)
    store.append(make_record(uuid="b"))
    contents = store.read("tiny")
    assert [record.uuid for record in contents.records] == ["a", "b"]
    assert len(contents.warnings) == 1
    assert said in contents.warnings[0]


def _append_many(folder: Path, writer: int) -> None:
    for index in range(25):
        Store(folder).append(make_record(uuid=f"{writer}-{index}"))


def test_many_writers_lose_no_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(tmp_path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    contents = Store(tmp_path).read("tiny")
    assert contents.warnings == ()
    assert len({record.uuid for record in contents.records}) == 100


def _append_and_read(folder: Path, writer: int, number: int) -> None:
    store, record = Store(folder), make_record()
    for index in range(number):
        store.append(record.model_copy(update={"uuid": f"{writer}-{index}"}))
        if index % 250 == 0:
            mine = {found.uuid for found in store.read("tiny").records if found.uuid.startswith(f"{writer}-")}
            assert mine == {f"{writer}-{done}" for done in range(index + 1)}


@pytest.mark.slow
def test_eight_processes_that_append_and_read_lose_none_of_10_000_records(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_and_read, args=(tmp_path, writer, 1250)) for writer in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    contents = Store(tmp_path).read("tiny")
    assert contents.warnings == ()
    assert len(contents.records) == len({record.uuid for record in contents.records}) == 10_000


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="cannot be written"):
        Store(tmp_path / "file").check_writable()


def test_only_an_outcome_in_the_same_environment_counts() -> None:
    ok = make_record(status="ok")
    assert has_outcome((ok,), ok.run_id, ok.environment_id, NONE)
    assert not has_outcome((ok,), ok.run_id, "another", NONE)
    assert has_outcome((ok,), ok.run_id, None, NONE)
    assert not has_outcome((ok,), "another", ok.environment_id, NONE)
    assert not has_outcome((ok,), ok.run_id, ok.environment_id, frozenset({"ok"}))


def test_a_changed_library_is_another_environment_and_a_commit_alone_is_not() -> None:
    newer = ENVIRONMENT.model_copy(update={"packages": {"torch": "2.13.1"}})
    source = ENVIRONMENT.model_copy(update={"source_checksum": "1" * 64})
    committed = ENVIRONMENT.model_copy(update={"commit": "abc", "dirty": True})
    assert len({e.environment_id for e in (ENVIRONMENT, newer, source)}) == 3
    assert committed.environment_id == ENVIRONMENT.environment_id


@pytest.mark.parametrize("status", ["failed", "timed_out", "interrupted"])
def test_a_failure_is_tried_again(status: str) -> None:
    record = make_record(status=status, reason="why")
    assert not has_outcome((record,), record.run_id, record.environment_id, NONE)


def test_added_scores_are_not_the_outcome_of_a_run() -> None:
    record = make_record().model_copy(update={"kind": "evaluation", "of": "x"})
    assert not has_outcome((record,), record.run_id, record.environment_id, NONE)


def test_a_record_survives_its_own_json() -> None:
    record = make_record()
    assert record.schema_version == SCHEMA_VERSION
    assert parse_record(json.loads(record.model_dump_json()), "here") == record
    assert isinstance(record, Record)
