"""What the fuzzing tests read, and the valid documents that they start from: one target for each kind of file."""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from harness.assets.data_files import FIELDS, read_data_file
from harness.assets.mt_bench import load_mt_bench, read_answers
from harness.commands.show import _facts
from harness.datasets import load_datasets
from harness.devices import load_devices
from harness.errors import HarnessError
from harness.evaluation.grading import Judged, gradings, mt_bench_scores, parse_score
from harness.evaluation.judges import ChatEndpoint, JudgeFailed, Reply
from harness.evaluation.judging import JudgeSettings, judge_answers
from harness.models import load_models
from harness.record import Record, Score
from harness.report.compare import compare_sides
from harness.report.compare_page import comparison_json, comparison_markdown
from harness.report.items import parse_items
from harness.report.page import report_markdown
from harness.report.paper import compare as compare_paper
from harness.report.paper import read_table
from harness.report.sides import Side, load_side
from harness.report.summary import summarize
from harness.store import parse_files
from harness.suite import expand, labels_of, load_suite
from harness.tuned import read_tuned, tuned_text
from tests.comparing import make
from tests.fuzzing import JSON_ONLY, TOML_ONLY, as_json, as_toml, documents
from tests.judge import Act, served
from tests.mt_bench import write_bench

ROOT = Path(__file__).parents[1]
TUNED = {
    "suite": "tiny",
    "suite_version": 1,
    "choices": [
        {
            "model": "tiny",
            "label": "full",
            "learning_rate": 1e-3,
            "environment_id": "e",
            "trials": [
                {"learning_rate": 1e-3, "seed": 7, "run_id": "a", "status": "ok", "validation_loss": 1.0},
                {"learning_rate": 2e-3, "seed": 7, "run_id": "b", "status": "diverged"},
            ],
        }
    ],
}
BENCHMARKS = {
    "machine_info": {"machine": "x86_64", "cpu": {"brand_raw": "a processor", "count": 2}, "system": "Linux"},
    "commit_info": {"id": "0" * 40, "dirty": False},
    "benchmarks": [
        {"group": None, "fullname": "benchmarks/a.py::b", "stats": {"data": [1.0, 1.1, 0.9], "mean": 1.0}},
        {"group": "g", "fullname": "benchmarks/a.py::c", "stats": {"mean": 2.0}},
    ],
    "version": "5.0",
}
JUDGMENT = {
    **{"question_id": 81, "model": "tiny", "judge": ["gpt-4", "single-v1"], "user_prompt": "p"},
    **{"judgment": "[[7]]", "score": 7, "turn": 1, "tstamp": 1.0, "repeat": 0, "judge_version": "v"},
    **{"prompt_version": "c", "max_tokens": 9},
}
REPLY = {"model": "gpt-4-0613", "choices": [{"message": {"role": "assistant", "content": "Rating: [[7]]"}}]}
ITEM = {"task": "piqa", "index": 0, "doc_hash": "h", "metrics": {"acc": 1.0, "acc_norm": 0.0}}
ROW = {
    "instruction": "i",
    "input": "x",
    "output": "o",
    "question": "q",
    "choices": ["a", "b"],
    "answer": 1,
    "text": "t",
}


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    make: Callable[[Path], Callable[[bytes], object]]
    """Given a folder to work in, what reads an input."""
    inputs: st.SearchStrategy[bytes]


def _toml(*files: str) -> list[dict[str, Any]]:
    return [tomllib.loads((ROOT / "suites" / name).read_text(encoding="utf-8")) for name in files]


def _suites(folder: Path) -> Callable[[bytes], object]:
    models = load_models()
    file = folder / "hostile.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        suite = load_suite(str(file))
        known = {name: models[name].with_weights(suite.weights) for name in suite.models if name in models}
        return labels_of(suite), [spec.run_id for spec in expand(suite, models=known, sources={})]

    return read


def _models(folder: Path) -> Callable[[bytes], object]:
    file = folder / "models.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found = load_models(file).values()
        return [model.identity() for model in found if model.folder is None]

    return read


def _catalogues(folder: Path) -> Callable[[bytes], object]:
    """Data sets, devices and tuned learning rates."""
    file = folder / "catalogue.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found: list[object] = []
        for load in (load_datasets, load_devices, read_tuned):
            try:
                found.append(load(file))
            except HarnessError as error:
                last = error
        if not found:
            raise last
        return [tuned_text(one) for one in found if hasattr(one, "choices")]

    return read


def _records(folder: Path) -> Callable[[bytes], object]:
    """Records, and what each command makes of them."""
    suite = make.make_suite()
    good = make.make_record("full")

    def read(data: bytes) -> object:
        contents = parse_files([("f.jsonl", data + b"\n")])
        for record in contents.records:
            line = record.model_dump_json()
            assert [one.model_dump_json() for one in parse_files([("again", f"{line}\n".encode())]).records] == [line]
            assert [str(value) for _, value in _facts(record, 1)]
        side = Side("one", (*contents.records, good))
        found = compare_sides(side, Side("other", (good, *contents.records)))
        assert comparison_markdown(found) and comparison_json(found)
        return report_markdown(summarize(suite, contents), {}, folder)

    return read


def _metrics(folder: Path) -> Callable[[bytes], object]:
    """pytest-benchmark's documents."""
    file = folder / "benchmark.json"
    other = folder / "good.json"
    other.write_text(json.dumps(BENCHMARKS))

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found = compare_sides(load_side(str(file)), load_side(str(other)))
        return comparison_markdown(found), comparison_json(found)

    return read


def _tables(folder: Path) -> Callable[[bytes], object]:
    """A user's own published numbers."""
    file = folder / "table.csv"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return compare_paper(read_table(str(file)), {})

    return read


def _items(_folder: Path) -> Callable[[bytes], object]:
    import zstandard

    def read(data: bytes) -> object:
        spoilt = bool(data) and data[0] % 16 == 0
        return parse_items(data if spoilt else zstandard.ZstdCompressor(level=1).compress(data), "items")

    return read


def _rows(folder: Path) -> Callable[[bytes], object]:
    """A user's own training rows."""
    file = folder / "rows.json"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        rows = read_data_file(file, sorted(FIELDS)[len(data) % len(FIELDS)], "task")
        return [f"{row.instruction}{row.input}{row.output}".encode() for row in rows]

    return read


def _judgments(folder: Path) -> Callable[[bytes], object]:
    """The text of a judge, scored; and as what a run's judgments become."""
    bench = load_mt_bench(write_bench(folder / "bench"))
    answers = {question.question_id: ("a", "b") for question in bench.questions}
    asked = gradings(bench, answers, "gpt-4")[:1]

    class Fake:
        endpoint = "fake"
        known_version = None
        text = ""

        def ask(self, _messages: object) -> Reply:
            return Reply(self.text, self.text[:20])

    def read(data: bytes) -> object:
        judge, file = Fake(), folder / "judgments.jsonl"
        try:
            judge.text = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            judge.text = data.decode("utf-8", "replace")
        score = parse_score(judge.text)
        assert math.isfinite(score)
        file.unlink(missing_ok=True)
        settings = JudgeSettings("gpt-4", "tiny", "c", 9, 1)
        outcome = judge_answers(judge, asked, file, settings)
        found = mt_bench_scores([*outcome.judged, Judged(1, "math", 1, 0, score)], "judge")
        return [Score.model_validate_json(one.model_dump_json()) for one in found]

    return read


def _judgment_files(folder: Path) -> Callable[[bytes], object]:
    bench = load_mt_bench(write_bench(folder / "bench"))
    asked = gradings(bench, {81: ("a", "b")}, "gpt-4")[:1]
    known = json.dumps(JUDGMENT | {"user_prompt": asked[0].user_prompt, "judge": ["gpt-4", asked[0].prompt_name]})

    class Fake:
        endpoint = "fake"
        known_version = None

        def ask(self, _messages: object) -> Reply:
            return Reply("[[3]]", "v")

    def read(data: bytes) -> object:
        file = folder / "judgments.jsonl"
        file.write_bytes(data.replace(b'"p"', json.dumps(asked[0].user_prompt).encode()) + b"\n" + known.encode())
        outcome = judge_answers(Fake(), asked, file, JudgeSettings("gpt-4", "tiny", "c", 9, 1))
        return mt_bench_scores(outcome.judged, ", ".join(outcome.versions))

    return read


def _answers(folder: Path) -> Callable[[bytes], object]:
    """MT-Bench's files, each of which may be spoilt, and what is asked of them."""
    files = ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "answers.jsonl")

    def read(data: bytes) -> object:
        bench = write_bench(folder / "bench")
        answers = bench / "answers.jsonl"
        answers.write_text('{"question_id": 83, "choices": [{"turns": ["a", "b"]}]}\n')
        (bench / files[len(data) % len(files)]).write_bytes(data)
        found = load_mt_bench(bench)
        return [grading.messages for grading in gradings(found, read_answers(answers), "gpt-4")]

    return read


def _endpoint(_folder: Path) -> Callable[[bytes], object]:
    """What an endpoint replies, over HTTP."""

    def read(data: bytes) -> object:
        act = Act(None, body=data) if len(data) % 3 else Act(status=400 + len(data) % 200, body=data)
        with served(act) as judge:
            client = ChatEndpoint(judge.url, "gpt-4", key="sk-secret", max_retries=0, wait=lambda seconds: False)
            try:
                reply = client.ask([{"role": "user", "content": "x"}])
            except JudgeFailed as error:
                raise HarnessError(str(error)) from None
        return reply.text.encode(), reply.version.encode()

    return read


def _csv_text(node: Any) -> str:
    """Return nodes as CSV: a list of rows, each a list of cells."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in node if isinstance(node, list) else [node]:
        writer.writerow([getattr(cell, "text", cell) for cell in (row if isinstance(row, list) else [row])])
    return out.getvalue()


def _example_records() -> list[Any]:
    records: list[Record] = [make.make_record("full"), make.with_memory(make.make_record("galore"))]
    records += [record for record in [] if record.status != "ok"][:3]
    return [record.model_dump(mode="json") for record in records]


_SCORE_TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(("[[", "]]", "[", "]", "1", "10", "7.5", "9" * 400, "9" * 5000, ".", "٣", "0", "-", "\n")),
        st.sampled_from(("1" * 200_000, "[" * 200_000, "[[1" * 50_000, "[[" + "1." * 50_000, "\x1b[2J", "nan", "1e9")),
    ),
    max_size=8,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))

TARGETS: dict[str, Target] = {
    "suite files": Target(
        _suites, documents(_toml("quickstart.toml", "ablations.toml", "memory-small.toml"), as_toml, *TOML_ONLY)
    ),
    "model files": Target(_models, documents(_toml("models.toml"), as_toml, *TOML_ONLY)),
    "other catalogues": Target(
        _catalogues, documents([*_toml("datasets.toml", "devices.toml"), TUNED], as_toml, *TOML_ONLY)
    ),
    "record files": Target(_records, documents(_example_records(), as_json, *JSON_ONLY)),
    "benchmark files": Target(_metrics, documents([BENCHMARKS], as_json, *JSON_ONLY)),
    "paper tables": Target(
        _tables,
        documents([list(csv.reader((ROOT / "results/paper/lisa-memory.csv").open()))[:4]], _csv_text),
    ),
    "item files": Target(_items, documents([ITEM], as_json, *JSON_ONLY)),
    "training rows": Target(_rows, documents([[ROW, ROW], ROW, {"instances": [ROW]}], as_json, *JSON_ONLY)),
    "judge answers": Target(_judgments, st.one_of(_SCORE_TEXT, _SCORE_TEXT, st.binary(max_size=400))),
    "judge replies": Target(_endpoint, documents([REPLY, {"error": {"message": "no"}}], as_json, *JSON_ONLY)),
    "judgment files": Target(_judgment_files, documents([JUDGMENT], as_json, *JSON_ONLY)),
    "MT-Bench files": Target(
        _answers,
        documents(
            [
                {"question_id": 83, "category": "math", "turns": ["a", "b"]},
                {"question_id": 83, "choices": [{"turns": ["a", "b"]}]},
                {
                    **{"name": "single-v1", "type": "single", "system_prompt": "s", "output_format": "[[rating]]"},
                    "prompt_template": "{question} {answer}",
                },
            ],
            as_json,
            *JSON_ONLY,
        ),
    ),
}
