"""What the fuzzing tests read, and the valid documents that they start from: one target for each kind of file."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.catalogue.datasets import FIELDS, load_datasets
from harness.catalogue.devices import load_devices
from harness.catalogue.models import load_models
from harness.catalogue.resolved import load_catalogue
from harness.catalogue.tuned import read_tuned, tuned_text
from harness.commands.show import _facts
from harness.data.files import read_data_file
from harness.data.layouts import find_layout
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.record import Record
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.page import comparison_json, comparison_markdown
from harness.report.comparing.paper import compare as compare_paper
from harness.report.comparing.paper import read_table
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.reading.items import parse_items
from harness.report.reading.sides import Side, load_side
from harness.report.reading.summary import summarize
from harness.store import parse_files
from harness.suite import labels_of
from tests.comparing import make
from tests.fuzz_calibration import CALIBRATING
from tests.fuzz_judging import JUDGING
from tests.fuzzing import JSON_ONLY, TOML_ONLY, Target, as_json, as_toml, documents

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
NAMES = {
    "base_models": {"mine": {"architecture": "LlamaForCausalLM", "folder": "weights"}},
    "datasets": {"rows": {"layout": "text", "file": "rows.jsonl", "num_rows": 3}},
    "methods": {"soft": {"alias_of": "galore", "settings": {"scale": 0.1}}},
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
ITEM = {"task": "piqa", "index": 0, "doc_hash": "h", "metrics": {"acc": 1.0, "acc_norm": 0.0}}
ROW = {
    "instruction": "i",
    "input": "x",
    "output": "o",
    "question": "q",
    "choices": ["a", "b"],
    "answer": 1,
    "text": "t",
    "prompt": [{"role": "user", "content": "q"}],
    "completion": [{"role": "assistant", "content": "a"}],
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
}

TABLE = [[*ROW], [cell if isinstance(cell, str) else json.dumps(cell) for cell in ROW.values()]]


def _toml(*files: str) -> list[dict[str, Any]]:
    return [tomllib.loads((ROOT / "suites" / name).read_text(encoding="utf-8")) for name in files]


def _suites(folder: Path) -> Callable[[bytes], object]:
    models = load_models()
    file = folder / "hostile.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        suite = load_suite(str(file))
        known = {name: models[name].with_weights(suite.weights) for name in suite.models if name in models}
        return [labels_of(suite, model) for model in suite.models], [
            spec.run_id for spec in expand(suite, models=known, sources={})
        ]

    return read


def _models(folder: Path) -> Callable[[bytes], object]:
    file = folder / "models.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found = load_models(file).values()
        return [model.identity() for model in found if model.folder is None]

    return read


def _catalogues(folder: Path) -> Callable[[bytes], object]:
    """Data sets, devices, tuned learning rates, and a user's own names."""
    file = folder / "catalogue.toml"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        found: list[object] = []
        for load in (load_datasets, load_devices, read_tuned, load_catalogue):
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
        return markdown(report_document(summarize(suite, contents), {}), folder)

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


def _cells(folder: Path) -> Callable[[bytes], object]:
    """A user's own training rows in a table."""
    file = folder / "rows.csv"

    def read(data: bytes) -> object:
        file.write_bytes(data)
        layout = [*sorted(FIELDS), ""][len(data) % (len(FIELDS) + 1)]
        rows = read_data_file(
            file, layout or find_layout(file, {}), "task", {"text": "prompt"} if layout == "text" else {}
        )
        return [f"{row.text}{row.place}".encode() for row in rows]

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


TARGETS: dict[str, Target] = {
    "suite files": Target(
        _suites, documents(_toml("quickstart.toml", "ablations.toml", "memory-small.toml"), as_toml, *TOML_ONLY)
    ),
    "model files": Target(_models, documents(_toml("models.toml"), as_toml, *TOML_ONLY)),
    "other catalogues": Target(
        _catalogues, documents([*_toml("datasets.toml", "devices.toml"), TUNED, NAMES], as_toml, *TOML_ONLY)
    ),
    "record files": Target(_records, documents(_example_records(), as_json, *JSON_ONLY)),
    "benchmark files": Target(_metrics, documents([BENCHMARKS], as_json, *JSON_ONLY)),
    "paper tables": Target(
        _tables,
        documents([list(csv.reader((ROOT / "results/paper/lisa-memory.csv").open()))[:4]], _csv_text),
    ),
    "item files": Target(_items, documents([ITEM], as_json, *JSON_ONLY)),
    "training rows": Target(_rows, documents([[ROW, ROW], ROW, {"instances": [ROW]}], as_json, *JSON_ONLY)),
    "training tables": Target(_cells, documents([TABLE, [["text"], ["a"], ["b\nc"]]], _csv_text)),
    **CALIBRATING,
    **JUDGING,
}
