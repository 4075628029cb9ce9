"""Names in files never lead out of the folder of the results, nor members of a wheel out of theirs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.assets.wheels import extract_members
from harness.beside import within
from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.report.comparing.paper import read_table
from harness.report.reading.sides import items_beside
from harness.store import Store, parse_files
from tests.mt_bench import add_answers, write_bench
from tests.records import make_record

ROOT = Path(__file__).parents[2]
OUTSIDE = ("../x", "/etc/passwd", "a/../../x", "..", ".", "", "a\\..\\x", "C:/x", "x\0y")


def altered(key: str, value: str) -> bytes:
    """Return the line of a record in which one name is another, spelled by hand."""
    import json

    data: dict[str, Any] = json.loads(make_record(weights="weights/w", items="items/i").model_dump_json())
    (data if key in data else data["spec"])[key] = value
    return json.dumps(data).encode() + b"\n"


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["items", "weights", "run_id", "uuid", "environment_id", "suite", "method"])
def test_a_record_with_a_name_that_leads_elsewhere_is_passed_over(key: str, name: str) -> None:
    contents = parse_files([("f.jsonl", altered(key, name))])
    assert contents.records == ()
    assert f"{key} is" in contents.warnings[0]


def test_a_name_within_the_folder_is_taken() -> None:
    assert len(parse_files([("f", altered("items", "items/a..b.jsonl.zst"))]).records) == 1


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".x"])
@pytest.mark.parametrize("key", ["name", "tuned", "protocol"])
def test_a_suite_with_a_name_that_is_a_path_is_refused(key: str, name: str, tmp_path: Path) -> None:
    text = (ROOT / "suites" / "quickstart.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
    (tmp_path / "s.toml").write_text("\n".join([f'{key} = "{name}"', *lines]))
    with pytest.raises(HarnessError, match=f"{key} is '{name}'"):
        load_suite(str(tmp_path / "s.toml"))


@pytest.mark.parametrize("key", ["models", "labels"])
def test_a_suite_that_lists_a_path_is_refused(key: str, tmp_path: Path) -> None:
    text = (ROOT / "suites" / "quickstart.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
    (tmp_path / "s.toml").write_text("\n".join([f'{key} = ["../x"]', *lines]))
    with pytest.raises(HarnessError, match=rf"{key}.0 is '\.\./x'"):
        load_suite(str(tmp_path / "s.toml"))


def test_a_published_table_names_no_suite_by_a_path(tmp_path: Path) -> None:
    head, row = (ROOT / "results" / "paper" / "lisa-memory.csv").read_text().splitlines()[:2]
    cells = row.split(",")
    cells[head.split(",").index("suite")] = "/etc/x.toml"
    (tmp_path / "t.csv").write_text(f"{head}\n{','.join(cells)}\n")
    with pytest.raises(HarnessError, match=r"suite is '/etc/x.toml'"):
        read_table(str(tmp_path / "t.csv"))


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    results, secret = tmp_path / "results", tmp_path / "secret"
    results.mkdir()
    secret.mkdir()
    (secret / "items").write_bytes(b"secret")
    (results / "link").symlink_to(secret)
    (results / "own").mkdir()
    (results / "inside").symlink_to(results / "own")
    with pytest.raises(HarnessError, match="a link leads out of the folder of the records"):
        within(results, "link/items")
    assert within(results, "inside/items") == results / "inside" / "items"
    side = items_beside(results)
    assert side.items("link/items") is None
    assert "a link leads out" in side.warnings[0]


def test_answers_and_weights_behind_a_link_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, bench = tmp_path / "results", write_bench(tmp_path / "bench")
    record = add_answers(results, bench)
    assert record.mt_bench is not None
    answers = results / record.mt_bench.file
    (tmp_path / "elsewhere").mkdir()
    answers.rename(tmp_path / "elsewhere" / answers.name)
    answers.symlink_to(tmp_path / "elsewhere" / answers.name)
    arguments = ["judge", "--suite", "mt-bench-small", "--judge", "http://127.0.0.1:1", "--judge-model", "m"]
    assert cli.main([*arguments, "--data", f"mt_bench={bench}", "--results", str(results), "--dry-run"]) == 2
    assert "a link leads out of the folder of the records" in capsys.readouterr().err
    (results / "weights").symlink_to(tmp_path / "elsewhere")
    Store(results).append(make_record(uuid="w", weights="weights/w"))
    run_id = make_record().run_id
    assert cli.main(["evaluate", run_id, "--benchmark", "piqa", "--results", str(results)]) == 2
    assert "a link leads out of the folder of the records" in capsys.readouterr().err


def archive(file: Path, write: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        write(opened)
    return file


def special(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a/special")
    info.external_attr = mode << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda z: z.writestr("/etc/x", b"x"), "points outside"),
        (lambda z: z.writestr("a/../../x", b"x"), "points outside"),
        (lambda z: z.writestr("..", b"x"), "points outside"),
        (lambda z: z.writestr(".", b"x"), "points outside"),
        (lambda z: z.writestr("C:x", b"x"), "points outside"),
        (lambda z: z.writestr("a/b:stream", b"x"), "points outside"),
        (lambda z: z.writestr(special(0o120777), "/etc/passwd"), "is a link or a device"),
        (lambda z: z.writestr(special(0o010644), ""), "is a link or a device"),
        (lambda z: z.writestr(special(0o020644), ""), "is a link or a device"),
        (lambda z: (z.writestr("a/x", b"1"), z.writestr("a/x", b"2")), "stands there twice"),
        (lambda z: (z.writestr("a/x", b"1"), z.writestr("A/X", b"2")), "stands there twice"),
        (lambda z: (z.writestr("a/x", b"1"), z.writestr("a//./x", b"2")), "stands there twice"),
        (lambda z: z.writestr("a/bomb", b"\0" * 50_000_000), "would unpack to 50000000"),
    ],
)
def test_a_hostile_member_is_refused_before_anything_is_written(
    write: Callable[[zipfile.ZipFile], None], said: str, tmp_path: Path
) -> None:
    file = archive(tmp_path / "w.whl", write)
    with pytest.raises(HarnessError, match=said):
        extract_members(file, lambda _: True, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["w.whl"]


def test_a_member_longer_than_it_says_is_not_written_on(tmp_path: Path) -> None:
    file = archive(tmp_path / "w.whl", lambda z: z.writestr("a", os.urandom(100_000)))
    data = bytearray(file.read_bytes())
    where = data.rfind(b"PK\x01\x02")
    data[where + 24 : where + 28] = (10).to_bytes(4, "little")  # the size in the central directory
    file.write_bytes(data)
    with pytest.raises(HarnessError, match="is not a readable wheel"):
        extract_members(file, lambda _: True, tmp_path / "out")
    assert not (tmp_path / "out" / "a").exists() or (tmp_path / "out" / "a").stat().st_size <= 10


def test_a_model_named_like_a_path_makes_no_path(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('["../x"]\narchitecture = "LlamaForCausalLM"\nhub_id = "a/b"\n')
    with pytest.raises(HarnessError, match=r"name is '\.\./x'"):
        load_models(tmp_path / "m.toml")
