"""Runs are found by what they are called, and everything that prints one prints that name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.commands._find import find_records
from harness.errors import HarnessError
from harness.record import Record
from harness.run_names import folder_name, names_of, records_called
from harness.store import Store

from ..records import make_record, make_spec

SWEPT = "lora[alpha=16,rank=8]"


def run_of(label: str, seed: int = 1, minute: int = 0, **changes: Any) -> Record:
    more = {name: changes.pop(name) for name in ("status", "weights", "kind", "of") if name in changes}
    spec = make_spec(label=label, seed=seed, **changes)
    return make_record(uuid=f"{minute:02d}{label[0]}{seed}".ljust(32, "e"), minute=minute, spec=spec, **more)


RECORDS = [
    run_of("full", 1, 0),
    run_of("lora", 1, 1),
    run_of("lora", 2, 2),
    run_of(SWEPT, 1, 3),
    run_of("full", 1, 4, model={"name": "other", "source": "folder", "checksum": "1"}),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tiny/lora/2", [2]),
        ("lora/2", [2]),
        ("tiny/lora/2/", [2]),
        ("tiny/tiny/lora/2", [2]),
        (SWEPT, [3]),
        ("lora[rank=8,alpha=16]", [3]),
        ("lora[ rank=8 ,alpha=16]/1", [3]),
        (f"tiny/{SWEPT}/1", [3]),
        ("other", [4]),
        ("other/full", [4]),
        ("other/1", [4]),
        ("last", [4]),
        ("last/lora", [2]),
        ("last/tiny/tiny/full", [0]),
        ("lora", [1, 2]),
        ("full", [0, 4]),
        ("tiny", [0, 1, 2, 3, 4]),
        (RECORDS[1].run_id, [1]),
        (RECORDS[1].run_id[:6], [1]),
        (RECORDS[1].uuid[:6], [1]),
        (RECORDS[1].file_stem, [1]),
    ],
)
def test_a_name_a_part_of_one_or_digits_find_the_runs(text: str, found: list[int]) -> None:
    assert records_called(RECORDS, text) == [RECORDS[number] for number in found]


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "lor", "lora/3", "lora[rank=16]", "last/nothing", "lora/..", "../lora", "lora=1", "tiny/1/lora"),
        *("lora[", "lora]", "[rank=8]", "lora[rank]", "\x1b[31m", "l" * 100_000, "[" * 5_000 + "]" * 5_000),
    ],
)
def test_what_names_no_run_finds_none(text: str) -> None:
    assert records_called(RECORDS, text) == []


def test_a_seed_alone_names_nothing() -> None:
    assert records_called([run_of("lora", 4_000_000_001)], "4000000001") == []


def test_the_newest_is_by_time_whatever_scores_were_added() -> None:
    added = run_of("full", 1, 9, kind="evaluation", of=RECORDS[0].uuid)
    assert records_called([*RECORDS, added], "last") == [RECORDS[0], added]


def test_a_label_that_is_called_last_or_like_digits_is_found_by_its_name() -> None:
    named = [run_of("last", 1, 5), run_of("e", 1, 6)]
    assert records_called([*named, *RECORDS], "last") == [named[0]]
    assert records_called([*named, *RECORDS], "e") == [named[1]]


def test_the_folder_of_kept_weights_names_its_run() -> None:
    kept = run_of("lora", 3, 7, weights="weights/tiny-lora-3-0123abcd")
    records = [*RECORDS, kept]
    assert records_called(records, "weights/tiny-lora-3-0123abcd") == [kept]
    assert records_called(records, "tiny-lora-3-0123abcd") == [kept]


def found_in(folder: Path, *asked: Any, records: list[Record] = RECORDS) -> list[Record]:
    for record in records:
        Store(folder).append(record)
    return find_records(folder, *asked)


def test_a_name_of_several_runs_lists_them_and_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as raised:
        found_in(tmp_path, "lora")
    assert str(raised.value) == "'lora' is 2 runs: tiny/lora/1, tiny/lora/2; name one; 'last/lora' is the newest"
    assert find_records(tmp_path, "last/lora") == [RECORDS[2]]


def test_many_runs_of_a_name_are_counted(tmp_path: Path) -> None:
    records = [run_of("galore", seed, seed) for seed in range(1, 10)]
    with pytest.raises(HarnessError, match=r"tiny/galore/6 and 3 more; name one"):
        found_in(tmp_path, "galore", records=records)


def test_runs_of_one_name_that_were_asked_differently_are_told_by_their_digits(tmp_path: Path) -> None:
    again = run_of("full", 1, 8, suite_version=2)
    with pytest.raises(HarnessError) as raised:
        found_in(tmp_path, "tiny/full/1", records=[RECORDS[0], again])
    said = str(raised.value)
    assert f"tiny/full/1 ({RECORDS[0].run_id}), tiny/full/1 ({again.run_id})" in said
    assert "asked differently: give digits of an id" in said
    assert find_records(tmp_path, again.run_id) == [again]


def test_a_suite_narrows_and_is_named_where_runs_are_of_several(tmp_path: Path) -> None:
    other = run_of("lora", 1, 8, suite="second")
    with pytest.raises(HarnessError, match=r"second/tiny/lora/1.*narrow it with --suite"):
        found_in(tmp_path, "lora/1", records=[RECORDS[1], other])
    assert find_records(tmp_path, "lora/1", "second") == [other]
    file = tmp_path / "mine.toml"
    file.write_text('name = "second"\n')
    assert find_records(tmp_path, "lora/1", str(file)) == [other]
    assert find_records(tmp_path, "second/lora") == [other]
    with pytest.raises(HarnessError, match="no run of suite 'third'"):
        find_records(tmp_path, "lora/1", "third")
    for wrong in ("../second", "a\\b"):
        with pytest.raises(HarnessError, match="expected the name of a suite"):
            find_records(tmp_path, "lora/1", wrong)
    file.write_text("version = 1\n")
    with pytest.raises(HarnessError, match="has no name of a suite"):
        find_records(tmp_path, "lora/1", str(file))


def test_a_huge_name_is_said_in_short(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as raised:
        found_in(tmp_path, "x" * 100_000)
    assert len(str(raised.value)) < 400


def test_a_name_stands_alone_where_it_tells_runs_apart() -> None:
    assert list(names_of(RECORDS[:3]).values()) == ["tiny/full/1", "tiny/lora/1", "tiny/lora/2"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("lora", "tiny-lora-1-"),
        (SWEPT, "tiny-lora_alpha_16_rank_8-1-"),
        ("owlore[probability_file=../a b/c.json]", "tiny-owlore_probability_file_.._a_b_c.json-1-"),
        ("..", "tiny-unnamed-1-"),
        ("x" * 200, f"tiny-{'x' * 48}-1-"),
        ("lora[a=é\x00\n:*?]", "tiny-lora_a-1-"),
    ],
)
def test_a_folder_s_name_is_safe_on_every_system(label: str, name: str) -> None:
    found = folder_name(run_of(label))
    assert found[:-8] == name
    assert set(found[-8:]) <= set("0123456789abcdef")
    assert len(found) <= 143


def test_two_runs_of_one_name_have_folders_of_their_own() -> None:
    one, other = run_of("lora[a=x:y]", 1, 0), run_of("lora[a=x?y]", 1, 0)
    assert folder_name(one)[:-8] == folder_name(other)[:-8]
    assert folder_name(one) != folder_name(other)
    again = one.model_copy(update={"uuid": "f" * 32})
    assert folder_name(one) != folder_name(again)


def test_show_finds_by_name_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in RECORDS:
        Store(tmp_path).append(record)
    assert cli.main(["show", "last/lora", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["run", "tiny/lora/2"]
    assert lines[2].split()[:3] == ["run", "id", RECORDS[2].run_id]
    assert cli.main(["show", "lora/2", "--suite", "tiny", "--json", "--results", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == RECORDS[2].run_id
    assert cli.main(["show", "lora", "--results", str(tmp_path)]) == 2
    assert "'lora' is 2 runs" in capsys.readouterr().err
