"""Inputs that ended in a traceback, a hang or a lost record until they were found: by fuzzing, or by reading for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.assets.mt_bench import load_mt_bench
from harness.catalogue.datasets import load_datasets
from harness.catalogue.devices import load_devices
from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.evaluation.grading import Judged, gradings, mt_bench_scores, parse_score
from harness.evaluation.judges import ChatEndpoint, JudgeFailed, Reply
from harness.evaluation.judging import JudgeSettings, judge_answers
from harness.evaluation.verdicts import NOT_PARSED
from harness.expansion import load_suite
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.page import comparison_json
from harness.report.comparing.paper import read_table
from harness.report.comparing.subjects import subjects_of_benchmarks
from harness.report.reading.items import parse_items
from harness.report.reading.sides import Side, load_side
from harness.store import parse_files
from tests.judge import Act, served
from tests.mt_bench import write_bench
from tests.records import make_record

SUITE = (Path(__file__).parents[2] / "suites" / "quickstart.toml").read_text(encoding="utf-8")


def suite(text: str, folder: Path) -> None:
    (folder / "s.toml").write_text(text)
    load_suite(str(folder / "s.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a." * 50_000 + "a = 1", "line 1 has over 1000 dots"),
        ("x = 0x" + "f" * 5000, "holds a number of more than 64 bits"),
        ("x = " + "9" * 5000, "is not valid TOML: Exceeds the limit"),
        ("x = " + "[" * 50_000, "nested too deeply"),
        ("x = " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("x = '" + "y" * 10_000_000 + "'", "has over 1,048,576 bytes"),
        (SUITE + "k" * 100_000 + " = 1", "has no setting 'kkkk"),
        ('"a\\n\\u2028b" = 1\n' + SUITE, "has no setting 'a b'"),
        (SUITE + "[sweep.lora]\n" + "".join(f"k{i} = {list(range(100))}\n" for i in range(10)), "over 10000"),
    ],
)
def test_a_suite_file_that_is_too_much_is_refused_at_once(text: str, said: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(HarnessError) as error:
        suite(text, tmp_path)
    assert said in str(error.value)
    assert len(str(error.value)) < 2000
    assert time.process_time() - began < 1


@pytest.mark.parametrize("load", [load_models, load_datasets, load_devices])
@pytest.mark.parametrize(
    ("text", "said"), [("x = 1", "'x' is int, expected a table"), ("[x]\nname = 'y'", "has no setting 'name'")]
)
def test_a_catalogue_holds_tables_alone(load: Callable[[Path], object], text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(HarnessError, match=said):
        load(tmp_path / "c.toml")


def test_a_measurement_that_is_infinite_is_read_again_and_not_a_lost_record() -> None:
    record = make_record()
    odd = record.model_copy(update={"phases": ()})
    line = odd.model_dump_json().replace('"phases":[]', '"phases":[{"name":"train","seconds":1e999}]')
    (read,) = parse_files([("f", f"{line}\n".encode())]).records
    again = parse_files([("f", f"{read.model_dump_json()}\n".encode())])
    assert again.warnings == ()
    assert again.records[0].phases[0].seconds == float("inf")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"name":"tiny"', '"nome":"tiny"', "model has no name"),
        ('"num_threads":2', '"num_threads":' + "9" * 400, "a number of more than 64 bits"),
        ('"platform":"Linux"', '"platform":"' + "x" * 10_000_000 + '"', "at most 262144 characters"),
    ],
)
def test_a_record_that_no_report_could_show_is_passed_over(before: str, after: str, said: str) -> None:
    line = make_record().model_dump_json()
    assert before in line
    contents = parse_files([("f", f"{line.replace(before, after)}\n{line}\n".encode())])
    assert len(contents.records) == 1
    assert said in contents.warnings[0]


def test_a_log_that_is_too_long_costs_no_record_and_keeps_its_end() -> None:
    record = make_record(status="failed", reason="why", log_tail="x" * 1_000_000 + "end")
    assert record.log_tail is not None
    assert record.log_tail.endswith("xend")
    (read,) = parse_files([("f", f"{record.model_dump_json()}\n".encode())]).records
    assert read == record


def test_a_long_number_within_a_text_is_none() -> None:
    record = make_record(status="failed", reason="seen: 12345678901234567890123")
    assert parse_files([("f", f"{record.model_dump_json()}\n".encode())]).records == (record,)


def test_a_record_without_a_time_zone_does_not_stop_the_reading_of_others() -> None:
    good = make_record().model_dump_json()
    naive = good.replace("2026-01-01T00:00:00Z", "2026-01-01T00:00:00")
    assert naive != good
    contents = parse_files([("f", f"{naive}\n{good}\n".encode())])
    assert len(contents.records) == 1
    assert "started_at" in contents.warnings[0]


@pytest.mark.parametrize("digits", ["1" * 400, "1" * 400 + ".", "1" * 5000, "9" * 300])
def test_a_score_that_no_float_holds_is_none(digits: str) -> None:
    score = parse_score(f"[[{digits}]]")
    assert score == NOT_PARSED
    assert mt_bench_scores([Judged(1, "math", 1, 0, score), Judged(2, "math", 1, 0, 7)], "j")[0].value == 7


@pytest.mark.parametrize("text", ["[[" + "1" * 200_000, "[[1" * 100_000, "[" * 400_000, "[1." * 100_000])
def test_a_long_judgment_without_a_bracket_takes_no_time(text: str) -> None:
    began = time.process_time()
    assert parse_score(text) == NOT_PARSED
    assert time.process_time() - began < 0.5


class _Says:
    endpoint = "fake"
    known_version = None

    def __init__(self, text: str) -> None:
        self.text = text

    def ask(self, _messages: object) -> Reply:
        return Reply(self.text, self.text)


def judged(folder: Path, text: str) -> list[str]:
    asked = gradings(load_mt_bench(write_bench(folder / "bench")), {81: ("a", "b")}, "gpt-4")
    outcome = judge_answers(_Says(text), asked, folder / "j.jsonl", JudgeSettings("gpt-4", "m", "c", 9, 1))
    return [*outcome.versions, *outcome.unparsed]


def test_half_a_character_in_a_judgment_is_replaced(tmp_path: Path) -> None:
    assert judged(tmp_path, "\ud800x") == ["?x", "?x", "?x"]


@pytest.mark.parametrize("row", ['{"judgment": []', "[" * 100_000, '{"judgment": "\\ud800"', '{"judge_version": 3'])
def test_a_line_that_is_no_judgment_is_named(row: str, tmp_path: Path) -> None:
    judged(tmp_path, "[[3]]")
    file = tmp_path / "j.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    text = row + ", " + json.dumps({k: v for k, v in first.items() if k not in row})[1:] if row[0] == "{" else row
    file.write_text(f"{text}\n")
    with pytest.raises(HarnessError, match=r"j.jsonl line 1: is no judgment of ours"):
        judged(tmp_path, "[[3]]")


@pytest.mark.parametrize(
    "template", ["{question.__class__}", "{0}", "{question:>9999999999}", "{question!r}", "{", "{question[0]}"]
)
def test_a_judge_prompt_may_only_name_what_is_put_in(template: str, tmp_path: Path) -> None:
    bench = write_bench(tmp_path)
    file = bench / "judge_prompts.jsonl"
    row = json.loads(file.read_text().splitlines()[1]) | {"prompt_template": template}
    file.write_text(json.dumps(row))
    with pytest.raises(HarnessError, match=r"judge_prompts.jsonl line 1: 'prompt_template' is no template of names"):
        load_mt_bench(bench)


def test_a_judge_prompt_or_reference_that_is_not_there_is_named(tmp_path: Path) -> None:
    bench = load_mt_bench(write_bench(tmp_path))
    with pytest.raises(HarnessError, match="there is no judge prompt 'single-v1'"):
        gradings(type(bench)(bench.questions, {}, bench.references, ""), {81: ("a", "b")}, "gpt-4")
    with pytest.raises(HarnessError, match="question 83 has no reference answer"):
        gradings(type(bench)(bench.questions, bench.prompts, {"gpt-4": {}}, ""), {83: ("a", "b")}, "gpt-4")


@pytest.mark.parametrize(
    "document",
    [
        {"machine_info": 1, "benchmarks": []},
        {"machine_info": {"cpu": "x"}, "benchmarks": []},
        {"commit_info": 1, "benchmarks": []},
        {"benchmarks": [1]},
        {"benchmarks": [{"fullname": ["a"], "stats": {"mean": 1.0}}]},
        {"benchmarks": [{"fullname": "a", "stats": {"mean": 10**400}}]},
        {"benchmarks": [{"fullname": "a", "stats": {"mean": 0.0}}]},
    ],
)
def test_a_benchmark_document_of_other_types_is_one_sentence(document: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match=r"^b.json: "):
        subjects_of_benchmarks([document], "b.json")


@pytest.mark.parametrize("time", [1e-320, 1e300])
def test_a_time_that_no_ratio_holds_is_not_compared(time: float) -> None:
    stats = [{"data": [time, 1.0, 2.0], "mean": 1.0}, {"data": [1.0, 1.1, 0.9], "mean": 1.0}]
    documents = [{"benchmarks": [{"fullname": "b", "stats": one}]} for one in stats]
    found = compare_sides(*(Side(f"side {i}", benchmarks=(one,)) for i, one in enumerate(documents)))
    assert comparison_json(found)
    assert not found.fails


def test_times_that_scatter_over_everything_show_no_smallest_worsening() -> None:
    stats = [{"data": [1e-29, 1e29], "mean": 1.0}, {"data": [1e29, 1e-29], "mean": 1.0}]
    documents = [{"benchmarks": [{"fullname": "b", "stats": one}]} for one in stats]
    found = compare_sides(*(Side(f"side {i}", benchmarks=(one,)) for i, one in enumerate(documents)))
    assert [cell.smallest for cell in found.cells] == [None]
    assert comparison_json(found)


@pytest.mark.parametrize(
    "body", [b'{"choices": [{"message": {"content": "\xed\xa0\x80x"}}]}', b'{"error": "\\ud800x"}']
)
def test_half_a_character_from_an_endpoint_is_replaced(body: bytes) -> None:
    with served(Act(None, body=body) if b"choices" in body else Act(status=400, body=body)) as judge:
        client = ChatEndpoint(judge.url, "m", key=None, max_retries=0)
        try:
            said = client.ask([{"role": "user", "content": "x"}]).text
        except JudgeFailed as error:
            said = str(error)
    assert said.encode()
    assert "?x" in said


def test_a_benchmark_document_that_is_nested_too_deeply_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("[" * 100_000)
    with pytest.raises(HarnessError, match="is not JSON"):
        load_side(str(tmp_path / "b.json"))


def test_items_that_say_they_are_huge_are_not_unpacked() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(HarnessError, match="says that it holds over 268,435,456 bytes"):
        parse_items(bomb, "items")


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"task": [], "index": 0, "doc_hash": "h", "metrics": {"acc": 1}}', '{"metrics": 1}']
)
def test_a_line_that_is_no_item_is_one_sentence(line: str) -> None:
    import zstandard

    with pytest.raises(HarnessError, match=r"items: is no file of items"):
        parse_items(zstandard.ZstdCompressor().compress(line.encode()), "items")


def test_a_column_with_a_long_name_is_a_short_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("paper," + "k" * 100_000 + "\nx,y\n")
    with pytest.raises(HarnessError) as error:
        read_table(str(tmp_path / "t.csv"))
    assert len(str(error.value)) < 2000
