"""Lines that are read fast are read as ever: the same records, the same sentences on what is none."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.record import Record
from harness.record_lines import RecordLines, may_hold_long_number
from harness.record_training import StepCurve, TrainResult
from harness.store import Contents, Following, Store, parse_files
from tests.records import make_record

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
RECORDS = make.mixed()[1].records + make.quickstart()[1].records
LINES = [record.model_dump_json().encode() + b"\n" for record in RECORDS]


def in_full(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Contents:
    with monkeypatch.context() as patch:
        patch.setattr(RecordLines, "record", lambda self, line: None)
        return parse_files([("f.jsonl", data)])


def same(one: Contents, other: Contents) -> bool:
    """Return whether two readings are the same to the last bit, warnings too."""
    alike = [record.model_dump_json() for record in one.records] == [r.model_dump_json() for r in other.records]
    return one == other and alike and [repr(r) for r in one.records] == [repr(r) for r in other.records]


def test_what_is_written_is_read_fast_and_whole() -> None:
    reader = RecordLines()
    read = [reader.record(line) for line in LINES]
    assert read == list(RECORDS)
    assert all(type(record) is Record for record in read)
    assert [record.model_dump_json() for record in read if record] == [r.model_dump_json() for r in RECORDS]
    assert [record.model_fields_set for record in read if record] == [
        Record.model_validate_json(line).model_fields_set for line in LINES
    ]


def test_what_records_share_is_one_object_and_what_differs_is_its_own() -> None:
    suite = make.make_suite()
    lines = [make.make_record("lora", seed=seed, suite=suite).model_dump_json().encode() + b"\n" for seed in (1, 2, 10)]
    reader = RecordLines()
    first, *others = (reader.record(line) for line in lines)
    assert first is not None
    for record in others:
        assert record is not None
        assert record.spec.evaluation is first.spec.evaluation
        assert record.environment is first.environment
        assert record.spec != first.spec
    assert [record.seed for record in (first, *others) if record] == [1, 2, 10]
    assert [record.run_id for record in others if record] == [record.spec.run_id for record in others if record]


def test_other_spellings_of_a_record_are_read_in_full() -> None:
    data = json.loads(LINES[4])
    spaced = json.dumps(data).encode() + b"\n"
    turned = json.dumps(dict(reversed(data.items())), separators=(",", ":")).encode() + b"\n"
    assert RecordLines().record(spaced) is None
    contents = parse_files([("f", spaced + turned + LINES[4])])
    assert contents.warnings == ()
    assert [record.uuid for record in contents.records] == [RECORDS[4].uuid] * 3


TRICKS = {
    "a seed in the config": (b'"config":{', b'"config":{"seed":5,'),
    "a seed below the seed": (b'"files":null', b'"files":{"a":"b","seed":"7"}'),
    "another question behind the seed": (b'"files":null', b'"files":{"a":"b"}'),
    "a seed that is no number": (b'"seed":1,', b'"seed":01,'),
    "a seed that is too large": (b'"seed":1,', b'"seed":4294967296,'),
    "a negative seed": (b'"seed":1,', b'"seed":-1,'),
    "a second environment": (b',"phases":', b',"environment":{},"phases":'),
    "a second question": (b',"phases":', b',"spec":5,"phases":'),
    "an environment within another": (b'"packages":{', b'"packages":{"x":{"environment":{"a":1}},'),
    "a key of its own": (b'"label":', b'"own":1,"label":'),
    "a score of a key of its own": (b'"metric":', b'"own":1,"metric":'),
    "a score that is no score": (b'"scores":[{', b'"scores":[1,{'),
    "scores of a comma too many": (b'}],"proof"', b'},],"proof"'),
    "a long number in a curve": (b'"tokens":[512', b'"tokens":[92233720368547758080'),
    "a long number in a score": (b'"n":40', b'"n":92233720368547758080'),
    "a long number in the config": (b'"config":{', b'"config":{"a":92233720368547758080,'),
    "a long fraction": (b'"loss":[2', b'"loss":[0.00012345678901234567,2'),
    "not a number": (b'"stderr":0', b'"stderr":NaN,"x":0'),
    "an older version": (b'"schema_version":6', b'"schema_version":3'),
    "the first version": (b'"schema_version":6', b'"schema_version":1'),
    "a newer version": (b'"schema_version":6', b'"schema_version":7'),
    "a version that is no number": (b'"schema_version":6', b'"schema_version":"6"'),
    "an end within": (b'"reason":null', b'"reason":"\\u0000\\u2028 \\",\\"environment\\":{"'),
    "bytes that are no text": (b'"label":"', b'"label":"\xff\xfe'),
    "a carriage return within": (b'"reason":null', b'\r"reason":null'),
    "an end of its own": (b"}\n", b"}\r\n"),
    "no end": (b"}\n", b"}"),
    "something behind it": (b"}\n", b"}{}\n"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_whatever_a_line_holds_it_is_read_as_in_full(trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = TRICKS[trick]
    line = LINES[4]
    assert before in line
    for data in (LINES[5] + line.replace(before, after, 1), line + line.replace(before, after, 1) + LINES[5]):
        assert same(parse_files([("f.jsonl", data)]), in_full(data, monkeypatch))


def test_damaged_bytes_are_read_as_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    damaged = []
    for _ in range(400):
        line = bytearray(chance.choice(LINES[:6]))
        at = chance.randrange(len(line))
        what = chance.random()
        if what < 0.4:
            line[at] = chance.choice(b'0123456789",:{}[]null-eE. \\')
        elif what < 0.7:
            del line[at : at + chance.randrange(1, 40)]
        else:
            other = chance.choice(LINES[:6])
            line[at:at] = other[(begin := chance.randrange(len(other))) : begin + chance.randrange(1, 60)]
        damaged.append(bytes(line))
    data = b"".join(LINES) + b"".join(damaged)
    assert same(parse_files([("f.jsonl", data)]), in_full(data, monkeypatch))


@pytest.mark.parametrize(
    ("text", "may"),
    [
        (b'{"a":9223372036854775808}', True),
        (b"[1,-9223372036854775808]", True),
        (b"9223372036854775808", True),
        (b"[ 9223372036854775808]", True),
        (b'{"a":0.00012345678901234567}', False),
        (b'{"a":"f9223372036854775808"}', False),
        (b'{"a":922337203685477580}', False),
    ],
)
def test_a_long_number_is_told_from_a_long_fraction_and_a_checksum(text: bytes, may: bool) -> None:
    assert may_hold_long_number(text) is may


def test_a_file_that_grows_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    following = Following(store, "tiny")
    assert following.contents() == Contents(())
    store.append(make_record(uuid="b", minute=2))
    assert following.contents() == store.read("tiny")
    read: list[bytes] = []
    once = RecordLines.record
    monkeypatch.setattr(RecordLines, "record", lambda self, line: read.append(line) or once(self, line))
    store.append(make_record(uuid="a", minute=1))
    assert [record.uuid for record in following.contents().records] == ["a", "b"]
    assert len(read) == 1
    assert following.contents() == store.read("tiny")


def test_a_line_that_was_cut_off_and_a_file_that_was_replaced_are_read_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.file_of("tiny")
    following = Following(store, "tiny")
    store.append(make_record(uuid="a"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:50])
    assert len(following.contents().warnings) == 1
    store.append(make_record(uuid="b", minute=1))  # sets the cut line aside
    assert following.contents() == store.read("tiny")
    assert following.contents().warnings == ()
    with file.open("ab") as stream:
        stream.write(b"no record\n")
    assert following.contents() == store.read("tiny")
    assert "line 3" in following.contents().warnings[0]
    file.write_bytes(whole)
    assert following.contents() == store.read("tiny")
    file.unlink()
    assert following.contents() == Contents(())


def test_no_rule_over_several_fields_is_passed_by() -> None:
    # Models of a line are made of fields: a validator of a whole model would not be asked.
    for model in (Record, TrainResult, StepCurve):
        found = model.__pydantic_decorators__
        assert not (found.model_validators or found.field_validators or found.root_validators or found.validators)


def test_curves_of_a_record_that_was_written_otherwise_are_whole() -> None:
    record = RECORDS[4]
    assert record.train is not None
    curve = record.train.curve.model_copy(update={"group_learning_rates": ((1.0, 0.5), (0.25,))})
    told = record.model_copy(update={"train": record.train.model_copy(update={"curve": curve})})
    line = told.model_dump_json().encode() + b"\n"
    assert RecordLines().record(line) == told
